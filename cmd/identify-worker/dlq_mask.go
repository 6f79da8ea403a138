package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"
)

// mask hides personal data from a screen, unless it was asked for: the values of properties,
// user ids that look like an e-mail address, and in texts what is quoted, e-mail addresses and long
// runs of digits. What it returns for a screen is fit for one, hidden or not; JSON is made so by
// printJSON.
type mask struct {
	reveal bool
	screen bool
	seed   maphash.Seed
	// literals are values, as JSON, that are shown all the same: see repair.
	literals map[string]bool
}

func newMask(reveal, json bool) *mask {
	return &mask{reveal: reveal, screen: !json, seed: maphash.MakeSeed()}
}

// fit makes text fit for the screen, if it is for one.
func (m *mask) fit(text string) string {
	if m.screen {
		return visible(text, maxShownText)
	}
	return text
}

const (
	hidden      = "***"
	hiddenEmail = "<e-mail>"
	// longDigits is the fewest that are hidden: our own errors speak of 524288 bytes.
	longDigits = 7
)

// user is a user id. An e-mail address becomes a name that is the same throughout one output and
// tells nothing in the next: a hash that stays could be guessed.
func (m *mask) user(id string) string {
	if !m.reveal && looksLikeEmail(id) {
		return fmt.Sprintf("<e-mail %06x>", maphash.String(m.seed, id)&0xffffff)
	}
	return m.fit(id)
}

// looksLikeEmail errs on the side of hiding.
func looksLikeEmail(text string) bool {
	return strings.ContainsAny(text, "@＠") || strings.Contains(text, "%40")
}

// text is what somebody said of an event, such as Userpilot's error.
func (m *mask) text(text string) string {
	if !m.reveal {
		text = hideEmails(hideDigits(hideQuoted(text)))
	}
	return m.fit(text)
}

// death is a line of a dead letter's history, which begins with a time of our own.
func (m *mask) death(line string) string {
	at, rest, found := strings.Cut(line, " ")
	if _, err := time.Parse(time.RFC3339, at); found && err == nil {
		return at + " " + m.text(rest)
	}
	return m.text(line)
}

// name is a property's.
func (m *mask) name(text string) string {
	if !m.reveal {
		text = hideEmails(hideDigits(text))
	}
	return m.fit(text)
}

// closingQuote is how what this rune opens ends; 0 if it opens nothing.
func closingQuote(r rune) rune {
	switch r {
	case '"', '\'', '`':
		return r
	case '“', '„':
		return '”'
	case '‘', '‚':
		return '’'
	case '«':
		return '»'
	}
	return 0
}

// hideQuoted hides what is between quotes. Where a quote does not end, as in a text that was cut,
// the rest is hidden.
func hideQuoted(text string) string {
	var b strings.Builder
	before := ' '
	for at := 0; at < len(text); {
		r, size := utf8.DecodeRuneInString(text[at:])
		end := closingQuote(r)
		if end == 0 || r == '\'' && isWord(before) || r == '"' && unicode.IsDigit(before) { // don't; 5"
			b.WriteString(text[at : at+size])
			before = r
			at += size
			continue
		}
		b.WriteRune(r)
		b.WriteString(hidden)
		at += size + quotedLength(text[at+size:], end)
		if at < len(text) {
			b.WriteRune(end)
			_, size := utf8.DecodeRuneInString(text[at:])
			at += size
		}
		before = end
	}
	return b.String()
}

// quotedLength is how many bytes there are before the closing quote.
func quotedLength(text string, end rune) int {
	for at := 0; at < len(text); {
		r, size := utf8.DecodeRuneInString(text[at:])
		next, _ := utf8.DecodeRuneInString(text[at+size:])
		switch {
		case r == '\\' && at+size < len(text):
			_, more := utf8.DecodeRuneInString(text[at+size:])
			size += more
		case r == end && !(end == '\'' && isWord(next)), r == '“' && end == '”': // „so“ closes differently
			return at
		}
		at += size
	}
	return len(text)
}

func isWord(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// hideEmails hides each word that has an at sign in it.
func hideEmails(text string) string {
	if !looksLikeEmail(text) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		end := strings.IndexFunc(text, endsEmail)
		if end < 0 {
			end = len(text)
		}
		word := text[:end]
		if looksLikeEmail(word) {
			word = hiddenEmail
		}
		b.WriteString(word)
		_, size := utf8.DecodeRuneInString(text[end:])
		b.WriteString(text[end : end+size])
		text = text[end+size:]
	}
	return b.String()
}

// endsEmail reports what cannot be in an address that anybody uses, and often stands beside one.
func endsEmail(r rune) bool {
	return unicode.IsSpace(r) || strings.ContainsRune(`,;:()<>[]{}"'=/\|`+"`", r)
}

// hideDigits hides runs of digits, as in a phone number: blanks, dots, dashes and brackets between
// them do not end a run.
func hideDigits(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		start := strings.IndexFunc(text, unicode.IsDigit)
		if start < 0 {
			break
		}
		b.WriteString(text[:start])
		length, digits := digitRun(text[start:])
		if digits < longDigits {
			b.WriteString(text[start : start+length])
		} else {
			b.WriteString(hidden)
		}
		text = text[start+length:]
	}
	return b.String() + text
}

// digitRun is how long the run at the beginning is, to its last digit.
func digitRun(text string) (length, digits int) {
	between := 0
	for at, r := range text {
		switch {
		case unicode.IsDigit(r):
			length, between = at+utf8.RuneLen(r), 0
			digits++
		case strings.ContainsRune(" .-/()", r) && between < 2:
			between++
		default:
			return length, digits
		}
	}
	return length, digits
}

// value is a property's value as JSON in one line.
func (m *mask) value(v any) string {
	text, err := gojq.Marshal(v)
	if err != nil {
		return "?"
	}
	if !m.reveal && !m.literals[string(text)] {
		if text, err = gojq.Marshal(hide(v)); err != nil {
			return "?"
		}
		if s, ok := hide(v).(string); ok {
			return s // no quotes: it is no string of the event
		}
	}
	return visible(string(text), maxShownText)
}

// hide leaves the shape of a value.
func hide(v any) any {
	switch v := v.(type) {
	case map[string]any:
		shape := map[string]any{}
		for name, member := range v {
			shape[hideEmails(hideDigits(name))] = hide(member)
		}
		return shape
	case []any:
		shape := make([]any, len(v))
		for i, element := range v {
			shape[i] = hide(element)
		}
		return shape
	case nil:
		return nil
	case bool:
		return "<boolean>"
	case string:
		return hiddenString(v)
	}
	return "<number>"
}

func hiddenString(s string) string {
	return "<string, " + counted(utf8.RuneCountInString(s), "character") + ">"
}

// maxShownEvent is how much of an event is shown, in bytes.
const maxShownEvent = 16 << 10

// errCut says that an event is larger than what is shown of it.
var errCut = errors.New("cut")

// event writes an event in the order of its members, with an indent in several lines. On a screen
// what is above the limit of bytes is cut, with errCut. Any other error says that the body is not
// JSON.
func (m *mask) event(body []byte, indent string, limit int64) (text string, err error) {
	var b bytes.Buffer
	options := []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}
	in := jsontext.NewDecoder(bytes.NewReader(body), options...)
	if indent != "" {
		options = append(options, jsontext.WithIndent(indent))
	}
	out := jsontext.NewEncoder(&b, options...)
	for begun := false; err == nil && (!begun || in.StackDepth() > 0); begun = true {
		var token jsontext.Token
		if token, err = in.ReadToken(); err != nil {
			return "", err
		}
		if err := out.WriteToken(m.token(in, token)); err != nil {
			return "", err
		}
		if m.screen && out.OutputOffset() > limit {
			err = errCut
		}
	}
	if err == nil {
		if _, errMore := in.ReadToken(); !errors.Is(errMore, io.EOF) {
			return "", errors.New("goes on after its end")
		}
	}
	if err := closeJSON(out); err != nil {
		return "", err
	}
	return string(printable(bytes.TrimSpace(b.Bytes()))), err
}

// closeJSON ends what is open.
func closeJSON(out *jsontext.Encoder) error {
	for depth := out.StackDepth(); depth > 0; depth-- {
		end := jsontext.EndArray
		if within, length := out.StackIndex(depth); within == '{' {
			end = jsontext.EndObject
			if length%2 == 1 { // after a name
				if err := out.WriteToken(jsontext.String("…")); err != nil {
					return err
				}
			}
		}
		if err := out.WriteToken(end); err != nil {
			return err
		}
	}
	return nil
}

// token is what is shown for a token.
func (m *mask) token(in *jsontext.Decoder, token jsontext.Token) jsontext.Token {
	kind := token.Kind()
	within, length := in.StackIndex(in.StackDepth())
	switch {
	case kind == '{', kind == '}', kind == '[', kind == ']', kind == 'n':
		return token
	case within == '{' && length%2 == 1: // a name
		return jsontext.String(m.name(token.String()))
	case kind == '"' && in.StackDepth() == 1 && in.StackPointer() == "/user_id":
		return jsontext.String(m.user(token.String()))
	case m.reveal && kind == '"':
		return jsontext.String(m.fit(token.String()))
	case m.reveal:
		return token
	case kind == '"':
		return jsontext.String(hiddenString(token.String()))
	case kind == '0':
		return jsontext.String("<number>")
	}
	return jsontext.String("<boolean>")
}
