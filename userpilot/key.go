package userpilot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

const redacted = "[redacted]"

// maxKeyBytes keeps a request's header within one write: see writeBuffer.
const maxKeyBytes = 2 << 10

// Key is a Userpilot API key that cannot leak by accident: printing, marshaling or
// logging it yields "[redacted]". The zero value is no key. A Key is immutable and
// safe for concurrent use.
type Key struct {
	// A function, because fmt calls no methods on unexported fields. If a struct has a
	// Key in an unexported field, fmt prints the field's contents, even behind a pointer
	// (%s does); for a function it prints only the address.
	secret func() string
}

// NewKey returns a key from the text of a file or an environment variable, without one
// trailing newline. It returns an error, which does not contain the key, if the key is
// empty, longer than 2 KiB, contains anything but visible ASCII characters, or was copied
// with something around it: quotes, a scheme, the name of a variable.
func NewKey(text string) (Key, error) {
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if text == "" {
		return Key{}, errors.New("API key: is empty")
	}
	if len(text) > maxKeyBytes {
		return Key{}, fmt.Errorf("API key: is longer than %d bytes", maxKeyBytes)
	}
	if err := checkCopied(strings.TrimSpace(text)); err != nil {
		return Key{}, err
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return Key{}, fmt.Errorf("API key: contains a space, a control character or a non-ASCII character at byte %d", i)
		}
	}
	return Key{func() string { return text }}, nil
}

// checkCopied refuses what is not a key alone.
func checkCopied(text string) error {
	scheme, _, hasScheme := strings.Cut(strings.ToLower(text), " ")
	line, exported := strings.CutPrefix(text, "export ")
	name, value, hasName := strings.Cut(strings.TrimSpace(line), "=")
	switch {
	case strings.Trim(text, "'\"`") != text:
		return errors.New("API key: is in quotes: give it without them")
	case hasScheme && (scheme == "token" || scheme == "bearer" || scheme == "authorization:"):
		return errors.New("API key: has the name of a scheme before it: give it without Token or Bearer, which the client adds")
	case strings.Contains(text, "${") || strings.Contains(text, "$(") || strings.Contains(text, "{{"):
		return errors.New("API key: contains a variable that was not replaced: give its value")
	case strings.HasPrefix(text, "<") && strings.HasSuffix(text, ">"):
		return errors.New("API key: is a placeholder in angle brackets: give the key itself")
	case hasName && (exported || isVariable(name)) && strings.Trim(value, "=") != "": // base64 may end with "="
		return errors.New("API key: has the name of a variable before it: give only what follows the equals sign")
	}
	return nil
}

// isVariable reports whether a name is like that of a variable with a key. A key may contain "=", so
// not everything before one is a name.
func isVariable(name string) bool {
	name = strings.ToUpper(name)
	like := strings.Contains(name, "KEY") || strings.Contains(name, "TOKEN") || strings.Contains(name, "USERPILOT")
	return like && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// LooksLikeAppToken reports whether k begins as an app token does: NX-. Userpilot answers 401 to one,
// as to any wrong key.
func (k Key) LooksLikeAppToken() bool {
	return strings.HasPrefix(k.reveal(), "NX-")
}

// IsZero reports whether k is the zero value.
func (k Key) IsZero() bool { return k.secret == nil }

// Fingerprint returns eight hexadecimal digits that distinguish keys in logs and reveal
// nothing else about them; "" for the zero Key.
func (k Key) Fingerprint() string {
	if k.IsZero() {
		return ""
	}
	sum := sha256.Sum256([]byte("identify-worker key fingerprint\x00" + k.reveal()))
	return hex.EncodeToString(sum[:4])
}

// reveal returns the key itself, for the Authorization header only.
func (k Key) reveal() string {
	if k.IsZero() {
		return ""
	}
	return k.secret()
}

// String returns "[redacted]".
func (k Key) String() string { return redacted }

// Format prints "[redacted]" for every verb and flag.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue logs "[redacted]".
func (k Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]" for every format that uses it, such as JSON, XML
// and YAML.
func (k Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalBinary returns an error, so that gob does not fall back to MarshalText and
// store "[redacted]" as a key.
func (k Key) MarshalBinary() ([]byte, error) {
	return nil, errors.New("API key: cannot be stored")
}
