package dlq

import (
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

func TestMaskText(t *testing.T) {
	t.Parallel()
	m := newMask(false, false)
	for text, want := range map[string]string{
		"":                                  "",
		"no such plan":                      "no such plan",
		`plan "gold" is not one of "a","b"`: `plan "…" is not one of "…"`,
		"for bob@example.com, or 12345678":  "for …, or …",
		"a\r\nb\x1b[31m\xff\u202e":          `a\r\nb\x1b[…`,
	} {
		if got := m.text(text); got != want {
			t.Errorf("%q:\n%s, want\n%s", text, got, want)
		}
		if got := newMask(true, false).text(text); got != render.Visible(text, render.MaxText) {
			t.Errorf("%q revealed: %s", text, got)
		}
	}
}

func TestMaskNote(t *testing.T) {
	t.Parallel()
	m := newMask(false, false)
	for text, want := range map[string]string{
		"":                                   "",
		"INC-1234: 12 of 524288":             "INC-1234: 12 of 524288",
		"reason=rejected user=bob@x.de id=1": "reason=rejected *** id=1",
		"call +49 (151) 234-5678.":           "call +***.",
		`.metadata.plan = "say \"x\"" | "y`:  `.metadata.plan = "…" | "…"`,
		"for bob%40example.com, bob＠例え.jp":   "for ***, ***",
		"a\r\nb":                             `a\r\nb`,
	} {
		if got := m.note(text); got != want {
			t.Errorf("%q:\n%s, want\n%s", text, got, want)
		}
		if got := newMask(true, false).note(text); got != render.Visible(text, render.MaxText) {
			t.Errorf("%q revealed: %s", text, got)
		}
	}
}

func TestMaskUser(t *testing.T) {
	t.Parallel()
	m := newMask(false, false)
	for id, want := range map[string]string{"": "", "ann": "ann", "12345678901": "12345678901", "a\nb": `a\nb`} {
		if got := m.user(id); got != want {
			t.Errorf("%q: %s", id, got)
		}
	}
	bob := m.user("bob@example.com")
	if !regexp.MustCompile(`^<e-mail [0-9a-f]{6}>$`).MatchString(bob) || m.user("bob@example.com") != bob || m.user("eve@example.com") == bob {
		t.Error("addresses cannot be told apart: ", bob)
	}
	if newMask(false, false).user("bob@example.com") == bob {
		t.Error("an address has the same name in two outputs") // one time in 16 million it may
	}
	if got := newMask(true, false).user("bob@example.com"); got != "bob@example.com" {
		t.Error(got)
	}
}

func TestMaskEvent(t *testing.T) {
	t.Parallel()
	const event = `{"user_id":"ann","metadata":{"plan":"gold","price":1.50,"on":true,"gone":null,"tags":["a",{"x":2}],"bob@example.com":1},"company":{"id":"c1"},"metadata":{"plan":"x"}}`
	for name, test := range map[string]struct{ body, masked, shown string }{
		"all kinds": {event,
			`{"user_id":"ann","metadata":{"plan":"<string, 4 characters>","price":"<number>","on":"<boolean>","gone":null,"tags":["<string, 1 character>",{"x":"<number>"}],"***":"<number>"},"company":{"id":"<string, 2 characters>"},"metadata":{"plan":"<string, 1 character>"}}`,
			event},
		"an address":       {`{"metadata":{"user_id":"ann"},"user_id":"ann"}`, `{"metadata":{"user_id":"<string, 3 characters>"},"user_id":"ann"}`, `{"metadata":{"user_id":"ann"},"user_id":"ann"}`},
		"a user in a user": {`{"user_id":{"user_id":"ann"}}`, `{"user_id":{"user_id":"<string, 3 characters>"}}`, `{"user_id":{"user_id":"ann"}}`},
		"no user":          {`{"user_id":7}`, `{"user_id":7}`, `{"user_id":7}`},
		"no object":        {`["a",1]`, `["<string, 1 character>","<number>"]`, `["a",1]`},
		"escapes":          {`{"user_id":"a\u001b\u202e\u007f"}`, `{"user_id":"a\u001b\u202e\u007f"}`, `{"user_id":"a\u001b\u202e\u007f"}`},
		"quotes":           {`{"a\"\u001b":"b\\n\"\u00e9\n"}`, `{"a\"\u001b":"<string, 6 characters>"}`, `{"a\"\u001b":"b\\n\"é\n"}`},
		"not UTF-8":        {"{\"user_id\":\"a\xff\"}", `{"user_id":"a�"}`, `{"user_id":"a�"}`},
		"broken":           {`{"user_id":"ann"`, "", ""},
		"twice":            {`{}{}`, "", ""},
		"nothing":          {"", "", ""},
	} {
		for reveal, want := range map[bool]string{false: test.masked, true: test.shown} {
			got, err := newMask(reveal, false).event([]byte(test.body), "", maxShownEvent)
			if got != want || (err != nil) != (want == "") {
				t.Errorf("%s, reveal %v: %v\n%s, want\n%s", name, reveal, err, got, want)
			}
		}
	}
}

// In JSON nothing is lost but what is masked.
func TestEventForScripts(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2*render.MaxText)
	for body, want := range map[string]string{
		`{"user_id":"ann","a":"` + long + `"}`:                     `{"user_id":"ann","a":"` + long + `"}`,
		`{"a":"\u001b\u202e\u007f😀` + "\U000e0041" + `","n":1.50}`: `{"a":"\u001b\u202e\u007f😀\udb40\udc41","n":1.50}`,
	} {
		if got, err := newMask(true, true).event([]byte(body), "", 0); got != want || err != nil {
			t.Errorf("%s: %s, %v", body, got, err)
		}
	}
}

func TestLargeEventsAreCut(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"deep": strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000),
		"wide": `{"a":[1` + strings.Repeat(",1", 400_000) + `]}`,
		"long": `{"a":"` + strings.Repeat("x", 800_000) + `"}`,
		"name": `{"` + strings.Repeat("x", 800_000) + `":1}`,
	} {
		for _, reveal := range []bool{true, false} {
			got, err := newMask(reveal, false).event([]byte(body), "  ", maxShownEvent)
			if len(got) > 3*maxShownEvent || !json.Valid([]byte(got)) || err != nil && !errors.Is(err, errCut) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
	}
}

// FuzzMask checks that no e-mail address and no quoted value survives, wherever they stand.
func FuzzMask(f *testing.F) {
	f.Add("plan ", "gold", " is not known to ", "bob", "example.com")
	f.Add(`it's a "`, `x" y`, `'`, "b", "c")
	f.Add("\xff", "\u202e", "@", "", "")
	f.Fuzz(func(t *testing.T, before, secret, after, name, host string) {
		m := newMask(false, false)
		for _, text := range []string{before, secret, after, before + name + "@" + host + after, before + " " + name + "@" + host + " " + after} {
			if got := m.text(text); looksLikeEmail(got) {
				t.Errorf("%q becomes %q", text, got)
			}
		}
		if user := name + "@" + host; m.user(user) == user || strings.Contains(m.user(user), "@") {
			t.Errorf("the user %q is shown", user)
		}
		const marks = "\"'`“”"
		plain := func(text string) string {
			return strings.Map(func(r rune) rune {
				if strings.ContainsRune(marks, r) || unicode.IsControl(r) || !unicode.IsPrint(r) {
					return -1
				}
				return r
			}, strings.ToValidUTF8(text, ""))
		}
		before, secret, after = plain(before), "KEEP"+plain(secret)+"OUT", plain(after)
		for _, pair := range []string{`""`, "''", "``", "“”"} {
			mark := []rune(pair)
			for _, text := range []string{
				before + " " + string(mark[0]) + secret + string(mark[1]) + " " + after,
				before + " " + string(mark[0]) + secret, // cut
				before + ": " + string(mark[0]) + "x" + string(mark[1]) + ", " + string(mark[0]) + secret + string(mark[1]) + after,
			} {
				if got := m.text(text); strings.Contains(got, "KEEP") && !strings.Contains(before+after, "KEEP") || strings.Contains(got, "OUT") && !strings.Contains(before+after, "OUT") {
					t.Errorf("%q becomes %q", text, got)
				}
			}
		}
	})
}

// FuzzMaskEvent checks that no value survives but the user's id, and that what is shown is JSON.
func FuzzMaskEvent(f *testing.F) {
	f.Add(`{"user_id":"ann","metadata":{"plan":"gold","n":1.50,"l":[true,{"a":"b"}]}}`)
	f.Add(`{"a":"KEEPSECRET","b":[123454321,"x"],"c":{"user_id":"KEEPSECRET"}}`)
	f.Fuzz(func(t *testing.T, body string) {
		for _, reveal := range []bool{false, true} {
			text, err := newMask(reveal, true).event([]byte(body), "", 0)
			if err != nil {
				continue
			}
			if !json.Valid([]byte(text)) || !isVisible(strings.ReplaceAll(text, "\n", "")) {
				t.Fatalf("%q becomes %q", body, text)
			}
			var shown any
			d := json.NewDecoder(strings.NewReader(text))
			d.UseNumber() // a number may be too large for any other type
			if err := d.Decode(&shown); err != nil {
				t.Fatal(err)
			}
			if reveal {
				continue
			}
			if object, ok := shown.(map[string]any); ok {
				delete(object, "user_id")
			}
			checkHidden(t, body, shown)
		}
	})
}

func checkHidden(t *testing.T, body string, value any) {
	t.Helper()
	switch v := value.(type) {
	case map[string]any:
		for _, member := range v {
			checkHidden(t, body, member)
		}
	case []any:
		for _, element := range v {
			checkHidden(t, body, element)
		}
	case string:
		if !regexp.MustCompile(`^<(number|boolean|string, [0-9,]+ characters?)>$`).MatchString(v) {
			t.Fatalf("%q shows %q", body, v)
		}
	case nil:
	default:
		t.Fatalf("%q shows %v", body, v)
	}
}

func isVisible(text string) bool {
	return utf8.ValidString(text) && !slices.ContainsFunc([]rune(text), func(r rune) bool { return !unicode.IsPrint(r) })
}

// FuzzMaskedText checks that whatever is shown of a text stays in its line, and that it is not long.
func FuzzMaskedText(f *testing.F) {
	f.Add("a\r\n\x1b[2J\u202e\xff")
	f.Add(strings.Repeat("\x00", 1<<16))
	f.Fuzz(func(t *testing.T, text string) {
		masked, shown := newMask(false, false), newMask(true, false)
		for _, got := range []string{masked.text(text), shown.text(text), masked.user(text), shown.user(text), quote(masked.name(text))} {
			if !isVisible(got) || utf8.RuneCountInString(got) > 10*render.MaxText+30 {
				t.Fatalf("%q becomes %q", text, got)
			}
		}
	})
}
