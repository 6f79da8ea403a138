package userpilot

import (
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// CheckStrict reports the first thing in an event that Userpilot documents no
// meaning for, as an *[InvalidError]: a member other than user_id, metadata and
// company; a metadata that is no object; a property that is an array or an object.
// [Parse] passes all of these on; a publisher may want to hear of them early.
// e must be an event that Parse took.
func (e Event) CheckStrict() error {
	r := newReader(nil)
	defer r.free()
	for name, value := range r.members(e.body) {
		if err := checkMember(string(unquote(name)), value); err != nil {
			return err
		}
	}
	return nil
}

func checkMember(name string, value jsontext.Value) error {
	switch name {
	case "user_id":
		return nil
	case "metadata":
		if kind := value.Kind(); kind != '{' {
			return invalid("metadata", "must be an object, not %s", article(kind))
		}
		return checkFlat(name, value)
	case "company":
		if value.Kind() == '{' {
			return checkFlat(name, value)
		}
		return nil
	}
	return invalid(quoteName(name), "is not a member of an identify (user_id, metadata, company)")
}

func checkFlat(object string, value jsontext.Value) error {
	r := newReader(nil)
	defer r.free()
	for name, value := range r.members(value) {
		if kind := value.Kind(); kind == '{' || kind == '[' {
			return invalid(object+"."+quoteName(string(unquote(name))),
				"must be a string, a number, a boolean or null, not %s", article(kind))
		}
	}
	return nil
}

// maxNameRunes is how much of a name of the user's own an error shows.
const maxNameRunes = 64

// quoteName makes a name fit for one line of an error.
func quoteName(name string) string {
	return strconv.Quote(cleanText(name, maxNameRunes))
}

// cleanText makes text from outside fit for one line: what is not printable becomes
// a space, and what is over limit runes is cut.
func cleanText(text string, limit int) string {
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text))
	runes := 0
	for i := range text {
		if runes == limit {
			return strings.TrimSpace(text[:i])
		}
		runes++
	}
	return text
}
