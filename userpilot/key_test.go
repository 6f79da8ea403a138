package userpilot_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
)

func TestNewKey(t *testing.T) {
	t.Parallel()
	const (
		quoted      = "API key: is in quotes: give it without them"
		scheme      = "API key: has the name of a scheme before it: give it without Token or Bearer, which the client adds"
		variable    = "API key: contains a variable that was not replaced: give its value"
		placeholder = "API key: is a placeholder in angle brackets: give the key itself"
		named       = "API key: has the name of a variable before it: give only what follows the equals sign"
	)
	for _, test := range []struct{ name, text, err string }{
		{"plain", testKey, ""},
		{"an app token", "NX-" + testKey, ""},
		{"base64", testKey + "==", ""},
		{"base64 with one more", "ABC=", ""},
		{"an equals sign inside", "ABC=" + testKey, ""},
		{"all kinds of characters", "a-b.c~d/e+f:g!h#i%j&k@l", ""},
		{"double quotes", `"` + testKey + `"`, quoted},
		{"single quotes", "'" + testKey + "'\n", quoted},
		{"half quotes", testKey + `"`, quoted},
		{"a quote", `"`, quoted},
		{"quotes and blanks", ` "` + testKey + `" `, quoted},
		{"Token", "Token " + testKey, scheme},
		{"bearer", "bearer " + testKey, scheme},
		{"the header", "Authorization: Token " + testKey, scheme},
		{"a line of an env file", "USERPILOT_API_KEY=" + testKey, named},
		{"a quoted line", `USERPILOT_API_KEY="` + testKey + `"`, quoted},
		{"a line of a script", "export USERPILOT_API_KEY=" + testKey, named},
		{"a line of a script with another name", "export SECRET=" + testKey, named},
		{"a lower-case name", "api_key=" + testKey, named},
		{"a token", "UP_TOKEN=" + testKey, named},
		{"a variable", "${" + testKey + "}", variable},
		{"a command", "$(cat " + testKey + ")", variable},
		{"a template", "{{ ." + testKey + " }}", variable},
		{"a line with a variable", "USERPILOT_API_KEY=${" + testKey + "}", variable},
		{"a placeholder", "<your API key>", placeholder},
		{"blanks", "  ", "API key: contains a space, a control character or a non-ASCII character at byte 0"},
		{"newline", testKey + "\n", ""},
		{"Windows newline", testKey + "\r\n", ""},
		{"two newlines", testKey + "\n\n", "API key: contains a space, a control character or a non-ASCII character at byte 25"},
		{"space", "se cret", "API key: contains a space, a control character or a non-ASCII character at byte 2"},
		{"not ASCII", "sécret", "API key: contains a space, a control character or a non-ASCII character at byte 1"},
		{"DEL", "secret\x7f", "API key: contains a space, a control character or a non-ASCII character at byte 6"},
		{"empty", "", "API key: is empty"},
		{"empty line", "\n", "API key: is empty"},
		{"long", strings.Repeat("x", 2049), "API key: is longer than 2048 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			key, err := userpilot.NewKey(test.text)
			if got := fmt.Sprint(err); err != nil && got != test.err || err == nil && test.err != "" {
				t.Errorf("error %q, want %q", got, test.err)
			}
			if err != nil && strings.Contains(err.Error(), testKey) {
				t.Errorf("the error shows the key")
			}
			if key.IsZero() != (test.err != "") {
				t.Errorf("IsZero %v", key.IsZero())
			}
		})
	}
}

func TestKeyFingerprint(t *testing.T) {
	t.Parallel()
	a, same, b := newKey(t, testKey), newKey(t, testKey+"\n"), newKey(t, "other")
	if a.Fingerprint() != same.Fingerprint() || a.Fingerprint() == b.Fingerprint() {
		t.Errorf("fingerprints %s, %s and %s", a.Fingerprint(), same.Fingerprint(), b.Fingerprint())
	}
	// It must be stable: operators compare it between replicas and with older logs.
	if got, want := a.Fingerprint(), "8d83c9a8"; got != want {
		t.Errorf("fingerprint %s, want %s", got, want)
	}
	if got := (userpilot.Key{}).Fingerprint(); got != "" {
		t.Errorf("fingerprint of no key: %s", got)
	}
}

func TestKeyIsNeverShown(t *testing.T) {
	t.Parallel()
	key := newKey(t, testKey)
	type inside struct {
		Exported userpilot.Key
		hidden   userpilot.Key // fmt and encoders call no methods on it
	}
	value := inside{key, key}
	config := userpilot.ClientConfig{Key: key}
	client := newClient(t, userpilot.ClientConfig{})

	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "% X", "%d", "%T %[1]v"} {
		for _, value := range []any{key, &key, config, &config, value, &value, []userpilot.Key{key}, client} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
	}
	for _, logger := range []*slog.Logger{slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))} {
		logger.Info("key", "key", key, "in", value, "config", config)
	}
	_ = json.NewEncoder(&out).Encode(map[string]any{"key": key, "in": value})
	_ = xml.NewEncoder(&out).Encode(value)
	_ = gob.NewEncoder(&out).Encode(value)

	if n := strings.Count(out.String(), "[redacted]"); n < 20 {
		t.Errorf("only %d times [redacted]: is anything printed at all?", n)
	}
	for _, form := range []string{testKey, fmt.Sprintf("%x", testKey), fmt.Sprintf("% X", testKey), fmt.Sprint([]byte(testKey))} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the key was shown, as %d characters", len(form))
		}
	}
}

// A key that went through gob would come back as a different key.
func TestKeyIsNotStored(t *testing.T) {
	t.Parallel()
	if err := gob.NewEncoder(new(bytes.Buffer)).Encode(newKey(t, testKey)); err == nil {
		t.Error("gob took it")
	}
}

func TestLooksLikeAppToken(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"NX-1a2b3c": true, testKey: false, "nx-1a2b3c": false, "key-NX-1": false} {
		if got := newKey(t, text).LooksLikeAppToken(); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
	if (userpilot.Key{}).LooksLikeAppToken() {
		t.Error("no key")
	}
}

func FuzzNewKey(f *testing.F) {
	for _, text := range []string{testKey, `"a"`, "Token a", "A=b", "${a}", "<a>", "", "\n", " "} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := userpilot.NewKey(text)
		if key.IsZero() != (err != nil) {
			t.Errorf("a key with an error: %v", err)
		}
	})
}
