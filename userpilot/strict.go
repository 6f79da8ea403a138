package userpilot

import (
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// CheckStrict returns an *[InvalidError] for the first part of an event whose meaning
// Userpilot does not document, or nil: a member other than user_id, metadata and
// company; metadata that is not an object; a property that is an array or an object.
// [Parse] accepts all of these; a publisher may want to detect them early. e must be an
// event that Parse accepted.
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
			return invalid("metadata", "must be an object, not %s", kindName(kind))
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
				"must be a string, a number, a boolean or null, not %s", kindName(kind))
		}
	}
	return nil
}

// maxNameRunes is how many characters of a publisher's name an error shows.
const maxNameRunes = 64

// quoteName quotes a name so that it fits into one line of an error.
func quoteName(name string) string {
	return strconv.Quote(cleanText(name, maxNameRunes))
}

// cleanText makes untrusted text fit for one line: it replaces what is not printable by
// spaces and cuts the text to limit runes.
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
