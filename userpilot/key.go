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

// Key is a Userpilot API key that cannot be shown: whatever prints, marshals or logs
// it gets "[redacted]". The zero value is no key. A Key is immutable and safe for
// concurrent use.
type Key struct {
	// A function, for fmt calls no methods on unexported fields: of a struct that
	// keeps a Key in one it prints what it finds, behind a pointer too (%s does), but
	// of a function only the address.
	secret func() string
}

// NewKey takes a key as it is read from a file or the environment: one trailing
// newline is not part of it. A key that is empty, longer than 2 KiB or has anything
// but visible ASCII characters is an error, which does not show it.
func NewKey(text string) (Key, error) {
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if text == "" {
		return Key{}, errors.New("API key: is empty")
	}
	if len(text) > maxKeyBytes {
		return Key{}, fmt.Errorf("API key: is longer than %d bytes", maxKeyBytes)
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return Key{}, fmt.Errorf("API key: has a space, a control character or one that is not ASCII at byte %d", i)
		}
	}
	return Key{func() string { return text }}, nil
}

// IsZero reports whether k is no key.
func (k Key) IsZero() bool { return k.secret == nil }

// Fingerprint returns eight hexadecimal digits that tell keys apart in logs and say
// nothing else about them; "" for no key.
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

// MarshalText returns "[redacted]", for every format that asks for text: JSON, XML
// and YAML among them.
func (k Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalBinary is an error, so that gob does not fall back on the text and store a
// key that is none.
func (k Key) MarshalBinary() ([]byte, error) {
	return nil, errors.New("API key: cannot be stored")
}
