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
	for _, test := range []struct{ name, text, err string }{
		{"plain", testKey, ""},
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
