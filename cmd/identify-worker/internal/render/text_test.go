package render

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func isPrintable(text string) bool {
	return utf8.ValidString(text) && !slices.ContainsFunc([]rune(text), func(r rune) bool { return !unicode.IsPrint(r) })
}

func TestVisible(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                       "",
		"žofie-名前 😀":             "žofie-名前 😀",
		"a\nb\tc\r\x00\x07":      `a\nb\tc\r\x00\a`,
		"\x1b]0;title\x07":       `\x1b]0;title\a`,
		"\x7f\u0085\u009b31m":    `\x7f\u0085\u009b31m`,
		"a\xff\xfeb":             `a\xff\xfeb`,
		"\u202ex\u2066\u200b":    `\u202ex\u2066\u200b`,
		"\u2028\u00a0\U000e0041": `\u2028\u00a0\U000e0041`,
		"1234567890":             "1234567890",
		"12345678901":            "1234567890… (11 bytes)",
		"名名名名名名名名名名名":            "名名名名名名名名名名… (33 bytes)",
	} {
		if got := Visible(text, 10); got != want && utf8.RuneCountInString(text) <= 11 {
			t.Errorf("%q: %s", text, got)
		}
	}
}

// FuzzVisible checks that whatever is shown stays in its line, and that it is not long.
func FuzzVisible(f *testing.F) {
	f.Add("a\r\n\x1b[2J\u202e\xff")
	f.Add(strings.Repeat("\x00", 1<<16))
	f.Fuzz(func(t *testing.T, text string) {
		if got := Visible(text, MaxText); !isPrintable(got) || utf8.RuneCountInString(got) > 10*MaxText+30 {
			t.Fatalf("%q becomes %q", text, got)
		}
		var out strings.Builder
		if err := JSON(&out, map[string]string{text: text}, ""); err != nil {
			t.Fatal(err)
		}
		if line, found := strings.CutSuffix(out.String(), "\n"); !found || !isPrintable(line) || !json.Valid([]byte(line)) {
			t.Fatalf("%q becomes %q", text, out.String())
		}
	})
}
