package userpilot

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"mime"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// What is used of a refusal's words.
const (
	maxWordsDepth = 6       // of objects and lists
	maxWordsParts = 8       // of a list, or of an object's fields
	maxPlainBytes = 1 << 10 // of plain text; a longer one is no message
)

// readWords reads a refusal's code and message, whatever its shape. fromAPI reports whether the
// body is JSON, as far as it was read; whole reports whether that is all of it.
//
// Userpilot documents {"errors":[{"details","error","error_code","message"}]}. What stands in front
// of it, and what comes after it, write otherwise: RFC 9457, a list of messages for each field, plain
// text. HTML is never quoted.
func readWords(body []byte, contentType string, whole bool) (code, message string, fromAPI bool) {
	text := trimStart(body)
	if len(text) == 0 {
		return "", "", false
	}
	w := words{json: jsontext.NewDecoder(bytes.NewBuffer(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))}
	said := w.value(0, false)
	valid := w.ended() || !whole && errors.Is(w.err, io.ErrUnexpectedEOF)
	switch {
	case valid:
		code = cmp.Or(w.codes[:]...)
		return code, cmp.Or(said, "the answer is not the documented error"), text[0] == '{' || text[0] == '['
	case isPlain(text, contentType):
		return "", string(text), false
	}
	return "", "the answer is not JSON", false
}

// isPlain reports whether text is a short message and no markup.
func isPlain(text []byte, contentType string) bool {
	media, _, _ := mime.ParseMediaType(contentType)
	return (media == "" || media == "text/plain") && len(text) <= maxPlainBytes &&
		bytes.IndexByte(text, '<') < 0 && utf8.Valid(text)
}

// words reads a refusal in one pass. Its methods read one value each, to its end, and do nothing
// after an error.
type words struct {
	json    *jsontext.Decoder
	codes   [3]string // by preference
	inField int       // how many fields the current value is in: these may echo what was sent
	err     error
}

// ended reports whether all was valid, and nothing follows.
func (w *words) ended() bool {
	if w.err == nil {
		_, w.err = w.json.ReadToken()
	}
	return errors.Is(w.err, io.EOF)
}

func (w *words) token() string {
	token, err := w.json.ReadToken()
	if err != nil {
		w.err = cmp.Or(w.err, err)
		return ""
	}
	return token.String()
}

// value returns what a value says, or "". Of an object, ofErrors reports whether its members may be
// names of fields.
func (w *words) value(depth int, ofErrors bool) string {
	switch kind := w.json.PeekKind(); {
	case isScalar(kind):
		text := strings.TrimSpace(w.token())
		if isMarkup([]byte(text)) {
			return ""
		}
		return text
	case kind == '[' && depth < maxWordsDepth:
		return w.list(depth+1, ofErrors)
	case kind == '{' && depth < maxWordsDepth:
		return w.object(depth+1, ofErrors)
	}
	w.err = cmp.Or(w.err, w.json.SkipValue())
	return ""
}

func isScalar(kind jsontext.Kind) bool { return kind == '"' || kind == '0' }

func (w *words) list(depth int, ofErrors bool) string {
	var parts []string
	w.token()
	for w.err == nil && w.json.PeekKind() != ']' {
		parts = addPart(parts, w.value(depth, ofErrors))
	}
	w.token()
	return strings.Join(parts, ", ")
}

// object returns an object's own message. If it has none, its members are fields with messages.
// What is nested in it as its errors follows.
func (w *words) object(depth int, ofErrors bool) string {
	said := make(map[string]string)
	var fields, nested []string
	w.token()
	for w.err == nil && w.json.PeekKind() != '}' {
		name := w.token()
		kind, role := w.json.PeekKind(), roleOf(name)
		switch {
		case role == "error" && !isScalar(kind):
			nested = addPart(nested, w.value(depth, true))
		case role != "" && !(ofErrors && kind == '['): // the messages of a field with that name
			text := w.value(depth, ofErrors)
			said[role] = cmp.Or(said[role], text)
		case ofErrors:
			w.inField++
			if text := w.value(depth, true); text != "" {
				fields = addPart(fields, name+": "+text)
			}
			w.inField--
		default:
			w.err = cmp.Or(w.err, w.json.SkipValue())
		}
	}
	w.token()
	w.noteCodes(said)
	parts := fields
	if own := message(said); own != "" {
		parts = []string{own}
	}
	for _, text := range nested {
		parts = addPart(parts, text)
	}
	return strings.Join(parts, "; ")
}

// roleOf returns what a member means for an error, or "".
func roleOf(name string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "")
	switch name {
	case "msg", "errormessage":
		return "message"
	case "details", "description", "errordescription":
		return "detail"
	case "errors":
		return "error"
	case "message", "detail", "title", "error", "field", "errorcode", "code", "type":
		return name
	}
	return ""
}

// message returns the message among what an object said.
func message(said map[string]string) string {
	text := said["message"]
	if text == "" {
		text = joinWords(cmp.Or(said["title"], said["error"]), said["detail"])
	}
	if text == "" {
		return ""
	}
	return joinWords(said["field"], text)
}

func joinWords(subject, text string) string {
	if subject == "" || text == "" {
		return subject + text
	}
	return subject + ": " + text
}

// noteCodes keeps the first code of each kind. A code can get into a log, so none comes from a field.
func (w *words) noteCodes(said map[string]string) {
	if w.inField > 0 {
		return
	}
	for i, role := range []string{"errorcode", "code", "type"} {
		if code := said[role]; code != "about:blank" { // RFC 9457 says so where there is no type
			w.codes[i] = cmp.Or(w.codes[i], code)
		}
	}
}

// addPart appends what has not been said yet.
func addPart(parts []string, text string) []string {
	said := func(part string) bool { return strings.Contains(part, text) }
	if text == "" || len(parts) == maxWordsParts || slices.ContainsFunc(parts, said) {
		return parts
	}
	return append(parts, text)
}
