// Package render makes text and JSON fit to be read on a terminal: counts, durations, sizes, and
// strings that others wrote, which may hold control characters. It knows nothing of events, NATS or
// flags.
package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxText is how many characters of a text are shown on a line.
const MaxText = 300

// Visible makes text safe for a line of a terminal: it escapes what is not printable or not UTF-8.
// It cuts text above the limit of characters, and says how long it is.
func Visible(text string, limit int) string {
	var b strings.Builder
	shown := 0
	for at := 0; at < len(text); {
		if shown == limit {
			fmt.Fprintf(&b, "… (%s)", Counted(len(text), "byte"))
			break
		}
		r, size := utf8.DecodeRuneInString(text[at:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[at])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(escaped(r))
		}
		at += size
		shown++
	}
	return b.String()
}

// Cut cuts text above the limit of characters, as [Visible] does, and escapes nothing: it is for
// strings that become part of JSON.
func Cut(text string, limit int) string {
	short := Truncate(text, limit)
	if short == text {
		return text
	}
	return short + " (" + Counted(len(text), "byte") + ")"
}

// escaped is a rune as Go and JSON write it: \n, \x1b, \u202e.
func escaped(r rune) string {
	quoted := strconv.QuoteRuneToASCII(r)
	return quoted[1 : len(quoted)-1]
}

// Truncate shortens text that is already safe for a line.
func Truncate(text string, limit int) string {
	count := 0
	for at := range text {
		if count == limit {
			return text[:at] + "…"
		}
		count++
	}
	return text
}

// OneLine formats an error as one line.
func OneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// OrDash replaces an empty cell of a table.
func OrDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// JSON writes a value on one line, or with an indent on several. The JSON is safe for a terminal:
// unlike encoding/json, it escapes all characters that are not printable.
func JSON(out io.Writer, value any, indent string) error {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", indent)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	_, err := out.Write(Printable(b.Bytes()))
	return err
}

// Printable escapes the characters in JSON that are not printable. They can only be in its
// strings.
func Printable(text []byte) []byte {
	isFine := func(r rune) bool { return r < utf8.RuneSelf && r != 0x7f || unicode.IsPrint(r) }
	if bytes.IndexFunc(text, func(r rune) bool { return !isFine(r) }) < 0 {
		return text
	}
	safe := make([]byte, 0, len(text)+64)
	for _, r := range string(text) {
		switch {
		case isFine(r):
			safe = utf8.AppendRune(safe, r)
		case r > 0xffff:
			r -= 0x10000
			safe = fmt.Appendf(safe, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			safe = fmt.Appendf(safe, `\u%04x`, r)
		}
	}
	return safe
}
