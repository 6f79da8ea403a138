package dlq

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// mask hides personal data unless --reveal is given: the values of properties, user ids that look
// like an e-mail address, and in texts whatever [deadletter.Pattern] leaves out. What it returns
// for a screen is safe to print, whether hidden or not. For JSON, [render.JSON] sees to that.
type mask struct {
	reveal bool
	screen bool
	// pseudonym names a user whose id is hidden.
	pseudonym func(user string) string
	// literals are values, as JSON, that are shown all the same: see edits.
	literals map[string]bool
}

func newMask(reveal, json bool) *mask {
	key := make([]byte, deadletter.SealBytes)
	_, _ = rand.Read(key) // it never fails
	return &mask{reveal: reveal, screen: !json, pseudonym: deadletter.Seal(key).Pseudonym}
}

// maskFor is newMask with names of users that are the same in all commands. They take the
// pipeline's secret, which is read when the first is needed. Without the right to read it, they are
// the same within one output only.
func (c *command) maskFor(ctx context.Context, q *queue.Queue, json bool) *mask {
	m := newMask(c.reveal, json)
	random := m.pseudonym
	named := sync.OnceValue(func() func(string) string {
		if named, err := inspector.New(q).Pseudonyms(ctx); err == nil {
			return named
		}
		return random
	})
	m.pseudonym = func(user string) string { return named()(user) }
	return m
}

// fit makes text safe for the screen, if that is where it goes.
func (m *mask) fit(text string) string {
	if m.screen {
		return render.Visible(text, render.MaxText)
	}
	return text
}

const hidden = "***"

// address matches e-mail addresses and whatever looks like one.
var address = regexp.MustCompile(`[^\s,;:()<>"']*(?:[@＠]|%40)[^\s,;:()<>"']*`)

// quoted matches what is in quotes. An open quote ends with the text.
var quoted = regexp.MustCompile(`(?s)"(?:[^"\\]|\\.)*(?:"|\\?$)`)

// longDigits matches phone numbers and the like.
var longDigits = regexp.MustCompile(`\pN([ .\-/()]{0,2}\pN){6,}`)

// user shows a user id.
func (m *mask) user(id string) string { return m.fit(m.hiddenUser(id)) }

// hiddenUser replaces an id that is an e-mail address. A hash without a secret could be guessed.
func (m *mask) hiddenUser(id string) string {
	if !m.reveal && looksLikeEmail(id) {
		return "<e-mail " + m.pseudonym(id) + ">"
	}
	return id
}

// looksLikeEmail errs on the side of hiding.
func looksLikeEmail(text string) bool {
	return strings.ContainsAny(text, "@＠") || strings.Contains(text, "%40")
}

// text shows what somebody said about an event, such as Userpilot's error.
func (m *mask) text(text string) string {
	if !m.reveal {
		text = address.ReplaceAllString(deadletter.Pattern(text, ""), "…")
	}
	return m.fit(text)
}

// note shows what an operator wrote, or what this program wrote about an operator's action.
func (m *mask) note(text string) string {
	if !m.reveal {
		text = quoted.ReplaceAllString(longDigits.ReplaceAllString(address.ReplaceAllString(text, hidden), hidden), `"…"`)
	}
	return m.fit(text)
}

// death shows a line of a dead letter's history: time, reason, status and code, then the error.
func (m *mask) death(line string) string {
	what, err, _ := strings.Cut(line, ": ")
	return strings.TrimSuffix(m.when(what)+": "+m.text(err), ": ")
}

// when shows a note that begins with a timestamp.
func (m *mask) when(text string) string {
	at, rest, found := strings.Cut(text, " ")
	if _, err := time.Parse(time.RFC3339, at); found && err == nil {
		return at + " " + m.note(rest)
	}
	return m.note(text)
}

// cut shortens a string of JSON for the screen. JSON escapes it, which fit would do once more.
func (m *mask) cut(text string) string {
	if m.screen {
		return render.Cut(text, render.MaxText)
	}
	return text
}

// name shows the name of a property as a string of JSON. It is rarely personal, but can be
// somebody's address or number.
func (m *mask) name(text string) string {
	if !m.reveal {
		text = hiddenName(text)
	}
	return m.cut(text)
}

func hiddenName(text string) string {
	if looksLikeEmail(text) || longDigits.MatchString(text) {
		return hidden
	}
	return text
}

// value shows a property's value as JSON on one line.
func (m *mask) value(v any) string {
	text, err := gojq.Marshal(v)
	if err != nil {
		return "?"
	}
	if !m.reveal && !m.literals[string(text)] {
		shape := hide(v)
		if s, ok := shape.(string); ok {
			return s // no quotes: it is no string of the event
		}
		if text, err = gojq.Marshal(shape); err != nil {
			return "?"
		}
	}
	return render.Cut(string(render.Printable(text)), render.MaxText)
}

// valueAt shows the value at a place in an event: a user's id as everywhere else.
func (m *mask) valueAt(place string, v any) string {
	if place == "/user_id" {
		switch v := v.(type) {
		case string:
			return quote(m.cut(m.hiddenUser(v)))
		case json.Number:
			return v.String()
		}
	}
	return m.value(v)
}

// quote writes a string as JSON, on one line of printable characters.
func quote(text string) string {
	quoted, _ := jsontext.AppendQuote(nil, text) // an error says that it was not UTF-8
	return string(render.Printable(quoted))
}

// hide keeps the shape of a value and hides the rest.
func hide(v any) any {
	switch v := v.(type) {
	case map[string]any:
		shape := map[string]any{}
		for name, member := range v {
			shape[hiddenName(name)] = hide(member)
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
	return "<string, " + render.Counted(utf8.RuneCountInString(s), "character") + ">"
}

// maxShownEvent is how many bytes of an event are shown.
const maxShownEvent = 16 << 10

// errCut says that an event is larger than the part that is shown.
var errCut = errors.New("cut")

// event shows an event with its members in their order; with an indent, on several lines. On a
// screen it cuts the event at the limit of bytes and returns errCut. Any other error says that the
// body is not JSON.
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
			return "", errors.New("has data after its end")
		}
	}
	if err := closeJSON(out); err != nil {
		return "", err
	}
	return string(render.Printable(bytes.TrimSpace(b.Bytes()))), err
}

// closeJSON closes all open arrays and objects.
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

// token returns what to show in place of a token.
func (m *mask) token(in *jsontext.Decoder, token jsontext.Token) jsontext.Token {
	kind := token.Kind()
	within, length := in.StackIndex(in.StackDepth())
	switch {
	case kind == '{', kind == '}', kind == '[', kind == ']', kind == 'n':
		return token
	case within == '{' && length%2 == 1: // a name
		return jsontext.String(m.name(token.String()))
	case kind == '"' && in.StackDepth() == 1 && in.StackPointer() == "/user_id":
		return jsontext.String(m.cut(m.hiddenUser(token.String())))
	case kind == '0' && in.StackDepth() == 1 && in.StackPointer() == "/user_id":
		return token // it counts as a user's id
	case m.reveal && kind == '"':
		return jsontext.String(m.cut(token.String()))
	case m.reveal:
		return token
	case kind == '"':
		return jsontext.String(hiddenString(token.String()))
	case kind == '0':
		return jsontext.String("<number>")
	}
	return jsontext.String("<boolean>")
}
