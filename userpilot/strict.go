package userpilot

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// The limits of Userpilot that [Event.CheckStrict] knows. It is not known what Userpilot does with
// events above them.
const (
	maxStrictProperties = 500
	maxStrictName       = 255    // characters
	maxStrictValue      = 65_535 // characters
)

// CheckStrict returns an *[InvalidError] for the first part of an event that is surely a mistake, or
// whose meaning Userpilot does not document, or nil: an id that comes of a bug, such as "undefined",
// "[object Object]", "1.23457E+15" or " ann"; a member other than user_id, metadata and company; a
// name that appears twice; a company with both id and company_id; metadata that is not an object; a
// property that is an array or an object; more than 500 properties, a name above 255 characters or a
// value above 65,535. [Parse] accepts all of these; a publisher may want to detect them early. e must
// be an event that Parse accepted.
func (e Event) CheckStrict() error {
	if problem := idProblem(e.userID); problem != "" {
		return invalid("user_id", "%s", problem)
	}
	r := newReader(nil)
	defer r.free()
	seen := make(map[string]bool, 3)
	for name, value := range r.members(e.body) {
		member := string(unquote(name))
		if seen[member] {
			return invalid(quoteName(member), "appears twice")
		}
		seen[member] = true
		if err := checkMember(member, value); err != nil {
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

func checkFlat(object string, members jsontext.Value) error {
	r := newReader(nil)
	defer r.free()
	seen := map[string]bool{}
	for quoted, value := range r.members(members) {
		name := string(unquote(quoted))
		if problem := propertyProblem(name, value); problem != "" {
			return invalid(object+"."+quoteName(name), "%s", problem)
		}
		if seen[name] {
			return invalid(object+"."+quoteName(name), "appears twice")
		}
		seen[name] = true
		if object == "company" && companyKey([]byte(name)) != noCompany && value.Kind() == '"' {
			if problem := idProblem(string(unquote(value))); problem != "" {
				return invalid("company."+name, "%s", problem)
			}
		}
	}
	switch {
	case object == "company" && seen["id"] && seen["company_id"]:
		return invalid("company", "has both id and company_id")
	case len(seen) > maxStrictProperties:
		return invalid(object, "has more than %d properties", maxStrictProperties)
	}
	return nil
}

// propertyProblem returns what is wrong with a property by itself, or "".
func propertyProblem(name string, value jsontext.Value) string {
	switch kind := value.Kind(); {
	case kind == '{' || kind == '[':
		return "must be a string, a number, a boolean or null, not " + kindName(kind)
	case utf8.RuneCountInString(name) > maxStrictName:
		return fmt.Sprintf("has a name of more than %d characters", maxStrictName)
	case len(value) > maxStrictValue && utf8.RuneCount(unquoteText(value)) > maxStrictValue:
		return fmt.Sprintf("is longer than %d characters", maxStrictValue)
	}
	return ""
}

// unquoteText is the text of a string, or another value as it is.
func unquoteText(value jsontext.Value) []byte {
	if value.Kind() == '"' {
		return unquote(value)
	}
	return value
}

// bogusIDs are what programs and spreadsheets write where they have no id.
const bogusIDs = "|undefined|null|(null)|nil|none|nan|true|false|n/a|[object object]|#n/a|#ref!|#value!|#name?|#null!|#num!|#div/0!|"

// idProblem returns what is wrong with an id that is surely nobody's, or "". It does not contain the
// id.
func idProblem(id string) string {
	trimmed := strings.TrimSpace(id)
	switch {
	case trimmed == "":
		if id == "" {
			return ""
		}
		return "is blank"
	case trimmed != id:
		return "has blanks at its ends"
	case !strings.Contains(id, "|") && strings.Contains(bogusIDs, "|"+strings.ToLower(id)+"|"):
		return "is no id, but what a program writes where it has none"
	case strings.Contains(id, "{{") || strings.Contains(id, "}}") || strings.Contains(id, "${") || strings.Contains(id, "<%"):
		return "has the text of a template in it"
	case isRounded(id):
		return "is a number that a spreadsheet has rounded"
	}
	return ""
}

// isRounded reports whether text is a number with an exponent as a spreadsheet writes it.
func isRounded(text string) bool {
	mantissa, exponent, found := strings.Cut(text, "E+")
	isDigits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	if !found || !isDigits(exponent) || mantissa == "" || !isDigits(mantissa[:1]) {
		return false
	}
	rest := mantissa[1:]
	return rest == "" || (rest[0] == '.' || rest[0] == ',') && isDigits(rest[1:])
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
