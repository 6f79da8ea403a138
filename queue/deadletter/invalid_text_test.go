package deadletter

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

func TestReplaceInvalid(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ body, want, at string }{
		"fine":                 {`{"a":"é\ud83d\ude00\\ud800\"","n":1.50}`, `{"a":"é\ud83d\ude00\\ud800\"","n":1.50}`, "[]"},
		"one byte":             {"{\"n\":1.50, \"a\":\"x\xffy\"}", `{"n":1.50, "a":"x�y"}`, "[{17 1 /a}]"},
		"several bytes":        {"{\"a\":\"\xff\xfe\xe2\x82\"}", `{"a":"����"}`, "[{6 1 /a} {7 1 /a} {8 1 /a} {9 1 /a}]"},
		"the first half":       {`{"a":{"b":["x\ud83d!"]}}`, `{"a":{"b":["x�!"]}}`, "[{13 6 /a/b/0}]"},
		"the second half":      {`{"a":"\uDE00"}`, `{"a":"�"}`, "[{6 6 /a}]"},
		"halves the wrong way": {`{"a":"\ude00\ud83d"}`, `{"a":"��"}`, "[{6 6 /a} {12 6 /a}]"},
		"two first halves":     {`{"a":"\ud83d\ud83d\ude00"}`, `{"a":"�\ud83d\ude00"}`, "[{6 6 /a}]"},
		"in a name":            {"{\"a\":{\"x\xff\":1,\"\\ud800\":2}}", `{"a":{"x�":1,"�":2}}`, "[{8 1 /a/x�} {14 6 /a/�}]"},
		"a name twice":         {"{\"a\":1,\"a\":\"\xff\"}", `{"a":1,"a":"�"}`, "[{12 1 /a}]"},
		"raw half in CESU-8":   {"{\"a\":\"\xed\xa0\xbd\"}", `{"a":"���"}`, "[{6 1 /a} {7 1 /a} {8 1 /a}]"},
		"no JSON":              {"\xff{", "�{", "[{0 1 }]"},
		"cut off":              {`{"a":"\ud8`, `{"a":"\ud8`, "[]"},
		"an escape at the end": {`"\`, `"\`, "[]"},
		"an escaped byte":      {"\"\\\xff", `"\�`, "[{2 1 }]"},
		"an escaped rune":      {`{"a":"\é"}`, `{"a":"\é"}`, "[]"},
		"empty":                {"", "", "[]"},
	} {
		got, at := ReplaceInvalid([]byte(test.body))
		if string(got) != test.want || fmt.Sprint(at) != test.at {
			t.Errorf("%s: %s, %v; want %s, %s", name, got, at, test.want, test.at)
		}
	}
}

// Whatever a lenient reader of JSON takes, a strict one takes after the replacement, as the same
// values; and nothing else changes.
func FuzzReplaceInvalid(f *testing.F) {
	for _, text := range []string{`{"a":"\ud800"}`, "{\"\xff\":[\"\\\\\\ud83d\\ude00\",1e9]}", `"\"\ud800\ud800"`, "\xed\xa0\xbd", `\ud800`, `"\u12`} {
		f.Add([]byte(text))
	}
	lenient := []jsontext.Options{jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, at := ReplaceInvalid(bytes.Clone(body))
		if !utf8.Valid(got) {
			t.Fatalf("%q becomes %q", body, got)
		}
		if again, more := ReplaceInvalid(got); more != nil || !bytes.Equal(again, got) {
			t.Fatalf("%q becomes %q, then %q", body, got, again)
		}
		rest, kept := bytes.Clone(body), strings.Split(string(got), "\ufffd")
		if strings.Contains(string(body), "\ufffd") { // its own cannot be told apart
			return
		}
		for _, bad := range slices.Backward(at) {
			rest = append(rest[:bad.Byte], rest[bad.Byte+bad.Bytes:]...)
		}
		if strings.Join(kept, "") != string(rest) || len(kept) != len(at)+1 {
			t.Fatalf("%q becomes %q, replaced at %v", body, got, at)
		}
		if !jsontext.Value(body).IsValid(lenient...) {
			return
		}
		if !jsontext.Value(got).IsValid(jsontext.AllowDuplicateNames(true)) {
			t.Fatalf("%q becomes %q, which is not valid", body, got)
		}
		var before, after any
		if json.Unmarshal(body, &before) == nil && (json.Unmarshal(got, &after) != nil || fmt.Sprint(before) != fmt.Sprint(after)) {
			t.Fatalf("%q becomes %q: other values", body, got)
		}
	})
}
