package userpilot

import (
	"bytes"
	"fmt"
	"iter"
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
	r := newReader(e.body)
	defer r.free()
	var seen nameSet
	for quoted := range r.names() {
		name := unquote(quoted)
		if seen.add(name) {
			return invalid(quoteName(string(name)), "appears twice")
		}
		if err := r.checkMember(string(name)); err != nil {
			return err
		}
	}
	return nil
}

// names opens the object that comes next and yields its names, still quoted. Between two of them the
// value must be read. The text is known to be valid.
func (r *reader) names() iter.Seq[jsontext.Value] {
	return func(yield func(jsontext.Value) bool) {
		if _, err := r.ReadToken(); err != nil {
			return
		}
		for r.PeekKind() != '}' {
			name, err := r.ReadValue()
			if err != nil || !yield(name) {
				return
			}
		}
		_, _ = r.ReadToken()
	}
}

// nameSet are names of an object, as parts of its text. A few are searched one by one, which is
// faster than a map.
type nameSet struct {
	few  [32][]byte
	n    int
	many map[string]struct{}
}

// add reports whether a name is there already.
func (s *nameSet) add(name []byte) bool {
	for _, other := range s.few[:min(s.n, len(s.few))] {
		if bytes.Equal(other, name) {
			return true
		}
	}
	switch {
	case s.n < len(s.few):
		s.few[s.n] = name
	case s.many == nil:
		s.many = map[string]struct{}{string(name): {}}
	default:
		if _, ok := s.many[string(name)]; ok {
			return true
		}
		s.many[string(name)] = struct{}{}
	}
	s.n++
	return false
}

func (r *reader) checkMember(name string) error {
	kind := r.PeekKind()
	switch {
	case name == "metadata" && kind != '{':
		return invalid("metadata", "must be an object, not %s", kindName(kind))
	case (name == "metadata" || name == "company") && kind == '{':
		return r.checkFlat(name)
	case name == "user_id" || name == "company":
		_, err := r.ReadValue()
		return err
	}
	return invalid(quoteName(name), "is not a member of an identify (user_id, metadata, company)")
}

func (r *reader) checkFlat(object string) error {
	var seen nameSet
	var ids [companyByCompanyID + 1]bool
	for quoted := range r.names() {
		name := unquote(quoted)
		value, err := r.ReadValue()
		if err != nil {
			return err
		}
		if problem := propertyProblem(name, value); problem != "" {
			return invalid(object+"."+quoteName(string(name)), "%s", problem)
		}
		if seen.add(name) {
			return invalid(object+"."+quoteName(string(name)), "appears twice")
		}
		if key := companyKey(name); object == "company" && key != noCompany {
			ids[key] = true
			if problem := companyProblem(value); problem != "" {
				return invalid("company."+string(name), "%s", problem)
			}
		}
	}
	switch {
	case ids[companyByID] && ids[companyByCompanyID]:
		return invalid("company", "has both id and company_id")
	case seen.n > maxStrictProperties:
		return invalid(object, "has more than %d properties", maxStrictProperties)
	}
	return nil
}

// companyProblem returns what is wrong with a company's id, or "".
func companyProblem(id jsontext.Value) string {
	if id.Kind() != '"' {
		return ""
	}
	return idProblem(string(unquote(id)))
}

// propertyProblem returns what is wrong with a property by itself, or "".
func propertyProblem(name []byte, value jsontext.Value) string {
	switch kind := value.Kind(); {
	case kind == '{' || kind == '[':
		return "must be a string, a number, a boolean or null, not " + kindName(kind)
	case len(name) > maxStrictName && utf8.RuneCount(name) > maxStrictName:
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

// idProblem returns what is wrong with an id that is surely nobody's, or "". It does not contain the
// id.
func idProblem(id string) string {
	trimmed := strings.TrimFunc(id, isBlank)
	switch {
	case trimmed == "":
		if id == "" {
			return ""
		}
		return "is blank"
	case trimmed != id:
		return "has blanks at its ends"
	case isBogus(id):
		return "is no id, but what a program writes where it has none"
	case hasTemplateMark(id):
		return "has the text of a template in it"
	case strings.HasPrefix(id, `="`):
		return "is a spreadsheet's formula"
	case isRounded(id):
		return "is a number that a spreadsheet or a program has rounded"
	}
	return ""
}

// isBogus reports whether text is what programs and spreadsheets write where they have no id.
func isBogus(text string) bool {
	switch strings.ToLower(text) {
	case "undefined", "null", "(null)", "nil", "none", "nan", "true", "false", "n/a", "[object object]",
		"#n/a", "#ref!", "#value!", "#name?", "#null!", "#num!", "#div/0!":
		return true
	}
	return false
}

// hasTemplateMark reports whether text is of a template that was not filled in.
func hasTemplateMark(text string) bool {
	for _, mark := range [...]string{"{{", "}}", "${", "<%"} {
		if strings.Contains(text, mark) {
			return true
		}
	}
	return false
}

// isBlank reports whether nothing is seen of a character: a space, or one such as a byte order mark or
// a zero-width space, which are copied along unseen.
func isBlank(r rune) bool { return unicode.IsSpace(r) || unicode.Is(unicode.Cf, r) }

// isRounded reports whether text is a number with an exponent as a spreadsheet or a program writes it.
func isRounded(text string) bool {
	mantissa, exponent, found := strings.Cut(text, "+")
	isDigits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	if !found || !isDigits(exponent) || len(mantissa) < len("1E") || !isDigits(mantissa[:1]) {
		return false
	}
	rest, e := mantissa[1:len(mantissa)-1], mantissa[len(mantissa)-1]
	if e != 'e' && e != 'E' {
		return false
	}
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
