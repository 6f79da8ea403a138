package deadletter

import (
	"bytes"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Replacement is a place in a body where text is not UTF-8, or is half a surrogate pair such as
// \ud800: what JSON to be sent must not have.
type Replacement struct {
	Byte  int              // of the body, at which it begins
	Bytes int              // how long it is
	Path  jsontext.Pointer // of the value, or of the member whose name it is in; valid UTF-8
}

// ReplaceInvalid replaces the text in a body that cannot be sent, each byte that is not UTF-8 and each
// half of a surrogate pair, by U+FFFD, the replacement character, and keeps all other bytes. It returns
// the body itself if there is nothing to replace. Whether the result is JSON is for others to check.
func ReplaceInvalid(body []byte) (repaired []byte, replaced []Replacement) {
	quoted := false
	kept := 0
	for at := 0; at < len(body); {
		size, bad := textAt(body[at:], &quoted)
		if bad {
			repaired = append(append(repaired, body[kept:at]...), string(utf8.RuneError)...)
			replaced = append(replaced, Replacement{Byte: at, Bytes: size})
			kept = at + size
		}
		at += size
	}
	if replaced == nil {
		return body, nil
	}
	locate(body, replaced)
	return append(repaired, body[kept:]...), replaced
}

// textAt is the length of the character or escape that text begins with, and whether it cannot be
// sent. quoted says whether it is within a string.
func textAt(text []byte, quoted *bool) (size int, bad bool) {
	switch c := text[0]; {
	case c >= utf8.RuneSelf:
		r, size := utf8.DecodeRune(text)
		return size, r == utf8.RuneError && size == 1
	case c == '"':
		*quoted = !*quoted
	case c == '\\' && *quoted:
		r := escapedUnit(text)
		switch {
		case r < 0 && len(text) > 1 && text[1] < utf8.RuneSelf:
			return 2, false
		case r < 0:
			return 1, false // the escape of nothing that JSON knows
		case !utf16.IsSurrogate(r):
			return escapeBytes, false
		case utf16.DecodeRune(r, escapedUnit(text[escapeBytes:])) != utf8.RuneError:
			return 2 * escapeBytes, false
		}
		return escapeBytes, true
	}
	return 1, false
}

// escapeBytes is the length of an escape such as \u00e9.
const escapeBytes = 6

// escapedUnit is the UTF-16 unit that an escape at the beginning of text stands for, or -1.
func escapedUnit(text []byte) rune {
	if len(text) < escapeBytes || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	unit, err := strconv.ParseUint(string(text[2:escapeBytes]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(unit)
}

// locate fills in the paths, as far as the body is JSON.
func locate(body []byte, replaced []Replacement) {
	d := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for i := 0; i < len(replaced); {
		if _, err := d.ReadToken(); err != nil {
			return
		}
		for path, end := d.StackPointer(), d.InputOffset(); i < len(replaced) && int64(replaced[i].Byte) < end; i++ {
			replaced[i].Path = path
		}
	}
}
