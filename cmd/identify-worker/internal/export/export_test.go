package export

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

func exportOf(body string) ([]byte, error) {
	return Line(&deadletter.Letter{ID: 12, Body: []byte(body)}, map[string][]string{
		"Dead-Reason": {"rejected"}, "Dead-History": {"one\x1b", "two"}, "Dead-Error": {`say "x" <&>`},
		"Dead-Origin": {"1700000000000000000.7"}, "Dead-Seal": {"abc"}, "Dead-Untracked": {"true"},
	})
}

func TestExportLine(t *testing.T) {
	t.Parallel()
	const begin = `{"id":"12","headers":{"Dead-Error":"say \"x\" \u003c\u0026\u003e","Dead-History":["one\u001b","two"],"Dead-Origin":"1700000000000000000.7","Dead-Reason":"rejected","Dead-Seal":"abc","Dead-Untracked":"true"},`
	for body, want := range map[string]string{
		`{"user_id": "ann",  "n":1.50}`: `"event":{"user_id": "ann",  "n":1.50}}`,
		`["a"]`:                         `"event":["a"]}`,
		"{\n}":                          `"event_base64":"ewp9"}`,
		` {}`:                           `"event_base64":"IHt9"}`,
		"{\"a\":\"\xff\"}":              `"event_base64":"eyJhIjoi/yJ9"}`,
		"{\"a\":\"\u202e\"}":            `"event_base64":"eyJhIjoi4oCuIn0="}`,
		"{\"a\":\"\x7f\"}":              `"event_base64":"eyJhIjoifyJ9"}`,
		"{":                             `"event_base64":"ew=="}`,
		"":                              `"event_base64":""}`,
	} {
		got, err := exportOf(body)
		if err != nil || string(got) != begin+want+"\n" {
			t.Errorf("%q:\n%s, %v; want\n%s", body, got, err, begin+want)
		}
	}
}

func TestReadExported(t *testing.T) {
	t.Parallel()
	const headers = `"headers":{"Dead-Origin":"1700000000000000000.7","Dead-Seal":"abc"}`
	for line, want := range map[string]string{
		`{"id":"1",` + headers + `,"event":{"user_id":"ann"}}`:            `{"user_id":"ann"}`,
		` { "event" : {"user_id": "ann"} , ` + headers + `} `:             `{"user_id": "ann"}`,
		`{` + headers + `,"event_base64":"e30="}`:                         "{}",
		`{` + headers + `,"event":null}`:                                  "null",
		`{` + headers + `}`:                                               "none",
		`{"event":{}}`:                                                    "none",
		`{"user_id":"ann",` + headers + `,"event":{}}`:                    "none",
		`{"headers":[],"event":{}}`:                                       "none",
		`not JSON`:                                                        "none",
		`{` + headers + `,"event":{}}{` + headers + `,"event":{}}`:        "none", // or the second would be lost
		`{` + headers + `,"event_base64":"?"}`:                            "event_base64: must be base64, without an event beside it",
		`{` + headers + `,"event_base64":"e30=","event":{}}`:              "event_base64: must be base64, without an event beside it",
		`{"headers":{"Dead-Origin":7},"event":{}}`:                        "headers: must be strings, or arrays of strings",
		`{"headers":{"Dead-Origin":["1.7",{}]},"event":{}}`:               "headers: must be strings, or arrays of strings",
		`{"headers":{},"event":{}}`:                                       "headers: Dead-Origin is missing, so the position of the event is unknown: export the dead letter again",
		`{"headers":{"Dead-Origin":"1.7"},"event":{}}`:                    "headers: Dead-Seal is missing, so no worker would trust the position of the event: export the dead letter again",
		`{"headers":{"Dead-Origin":"yesterday"},"event":{"user_id":"a"}}`: "headers: Dead-Origin is missing, so the position of the event is unknown: export the dead letter again",
	} {
		e, err := Read([]byte(line))
		got := "none"
		switch {
		case err != nil:
			got = err.Error()
		case e != nil:
			got = string(e.Body)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}

// FuzzExport checks that an event survives to the byte, in one line that a terminal can take.
func FuzzExport(f *testing.F) {
	f.Add([]byte(`{"user_id":"ann","a":1.50}`))
	f.Add([]byte("{\"a\":\"\xff\u202e\n\"}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		line, err := exportOf(string(body))
		if err != nil {
			t.Fatal(err)
		}
		text, found := strings.CutSuffix(string(line), "\n")
		unprintable := func(r rune) bool { return !unicode.IsPrint(r) && r != '\t' }
		if !found || !utf8.ValidString(text) || strings.ContainsFunc(text, unprintable) || !json.Valid(line) {
			t.Fatalf("%q becomes %q", body, line)
		}
		back, err := Read(line)
		if err != nil || back == nil || !bytes.Equal(back.Body, body) {
			t.Fatalf("%q comes back as %+v, %v", body, back, err)
		}
	})
}
