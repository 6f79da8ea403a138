package userpilot

import (
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// maxNesting is jsontext's own limit. Only the message depends on it.
const maxNesting = 10_000

// Parse parses the body of an identify. The Event keeps the body, so the caller must
// not change it afterwards. The error is always an *[InvalidError].
//
// Parse refuses a body only if Userpilot documents that it refuses it, or if its
// meaning is ambiguous: it is larger than [MaxEventBytes]; it is not exactly one JSON
// object in UTF-8 (a byte order mark, a lone surrogate and more than 10,000 levels are
// errors too); user_id is missing, repeated, empty or not a string; company is neither
// an object nor null, or all of its id and company_id are missing, null or "".
// Everything else is for Userpilot to decide, such as metadata that is not an object, a
// numeric company id or an unknown member. Names match exactly, after unescaping:
// User_ID is an unknown member.
//
// Parse returns an Event with an error too. It has the body, and the user if exactly one
// user_id was found before the syntax error, so that a dead letter can name them. A number
// stands for the user whose id is written like it: 42 for "42".
func Parse(body []byte) (Event, error) {
	r := newReader(body)
	defer r.free()
	p := parser{reader: r, event: Event{body: body, mergeable: true}}
	if len(body) > MaxEventBytes {
		p.refuse(invalid("body", "is larger than %d bytes", MaxEventBytes))
	}
	if err := p.body(); err != nil {
		p.refuseSyntax(err)
	}
	if p.users == 0 {
		p.refuse(invalid("user_id", "is missing"))
	}
	if p.err != nil {
		p.event.mergeable = false
		return p.event, p.err
	}
	return p.event, nil
}

// parser is the state of one Parse. Its methods return an error only if they cannot
// read on; other problems go to refuse, and reading continues, because user_id may
// come last.
type parser struct {
	*reader
	event Event
	err   *InvalidError
	users int // user_id members seen
}

// refuse records a problem; the first one wins.
func (p *parser) refuse(err *InvalidError) {
	if p.err == nil {
		p.err = err
	}
}

// refuseSyntax records a syntax error. It overrides other problems, except the size.
func (p *parser) refuseSyntax(err error) {
	if len(p.event.body) <= MaxEventBytes {
		p.err = p.syntaxError(err)
	}
}

// syntaxError describes where the syntax is wrong. It omits the decoder's own message,
// which quotes the text.
func (p *parser) syntaxError(err error) *InvalidError {
	if already, ok := errors.AsType[*InvalidError](err); ok {
		return already
	}
	syntax, ok := errors.AsType[*jsontext.SyntacticError](err)
	switch {
	case len(p.event.body) == 0:
		return invalid("body", "is empty")
	case !utf8.Valid(p.event.body):
		return invalid("body", "is not valid UTF-8")
	case !ok || errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("body", "is not JSON: it ends too early, after byte %d", len(p.event.body))
	case strings.Count(string(syntax.JSONPointer), "/") >= maxNesting:
		return invalid("body", "is nested deeper than %d levels", maxNesting)
	case jsontext.Value(p.event.body).IsValid(jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)):
		return invalid("body", "has half a surrogate pair after byte %d", syntax.ByteOffset)
	}
	return invalid("body", "is not JSON: it breaks after byte %d", syntax.ByteOffset)
}

func (p *parser) body() error {
	switch p.PeekKind() {
	case '{', jsontext.KindInvalid:
	default:
		return invalid("body", "must be a JSON object")
	}
	object, err := p.object(p.member)
	if err != nil {
		return err
	}
	if _, err := p.ReadToken(); !errors.Is(err, io.EOF) {
		return invalid("body", "has trailing data after byte %d", object.end)
	}
	return nil
}

// object reads the next object and returns its span. It calls member with each name;
// member must read the value.
func (p *parser) object(member func(name []byte) error) (span, error) {
	if _, err := p.ReadToken(); err != nil {
		return span{}, err
	}
	start := uint32(p.InputOffset()) - 1
	for p.PeekKind() != '}' {
		name, err := p.ReadValue()
		if err != nil {
			return span{}, err
		}
		if err := member(unquote(name)); err != nil {
			return span{}, err
		}
	}
	_, err := p.ReadToken()
	return span{start, uint32(p.InputOffset())}, err
}

// member reads one of the body's own members.
func (p *parser) member(name []byte) error {
	switch string(name) {
	case "user_id":
		return p.user()
	case "metadata":
		return p.metadata()
	case "company":
		return p.company()
	}
	p.event.mergeable = false
	_, err := p.ReadValue()
	return err
}

func (p *parser) user() error {
	value, err := p.ReadValue()
	if err != nil {
		return err
	}
	p.users++
	p.event.userID = ""
	switch kind := value.Kind(); {
	case p.users > 1:
		p.refuse(invalid("user_id", "appears twice"))
	case kind == 'n':
		p.refuse(invalid("user_id", "is null"))
	case kind != '"':
		p.refuse(invalid("user_id", "must be a string, not %s", kindName(kind)))
		if kind == '0' {
			p.event.userID = string(value)
		}
	case len(value) == len(`""`):
		p.refuse(invalid("user_id", "is empty"))
	default:
		p.event.userID = string(unquote(value))
		p.event.user = p.span(value)
	}
	return nil
}

func (p *parser) metadata() error {
	value, err := p.ReadValue()
	if err != nil {
		return err
	}
	if value.Kind() != '{' || !p.event.metadata.isAbsent() {
		p.event.mergeable = false
	}
	p.event.metadata = p.span(value)
	return nil
}

func (p *parser) company() error {
	switch kind := p.PeekKind(); kind {
	case '{':
		return p.companyObject()
	case 'n':
		p.event.mergeable = false // its effect is undocumented
	case jsontext.KindInvalid: // ReadValue returns the reason
	default:
		p.refuse(invalid("company", "must be an object, not %s", kindName(kind)))
	}
	_, err := p.ReadValue()
	return err
}

func (p *parser) companyObject() error {
	var ids, usable int
	object, err := p.object(func(name []byte) error {
		value, err := p.ReadValue()
		if err != nil {
			return err
		}
		key := companyKey(name)
		if key == noCompany {
			return nil
		}
		ids++
		if isUsableID(value) {
			usable++
		}
		if value.Kind() != '"' {
			p.event.mergeable = false
		}
		p.event.companyName, p.event.companyID = key, p.span(value)
		return nil
	})
	if err == nil && usable == 0 {
		p.refuse(invalid("company.id", "is missing: a company needs an id or a company_id"))
	}
	if ids != 1 || !p.event.company.isAbsent() {
		p.event.mergeable = false
	}
	p.event.company = object
	return err
}

// companyKey returns which member for the company's id a name is; noCompany if it is none.
func companyKey(name []byte) companyName {
	switch string(name) {
	case "id":
		return companyByID
	case "company_id":
		return companyByCompanyID
	}
	return noCompany
}

func isUsableID(value jsontext.Value) bool {
	return value.Kind() != 'n' && string(value) != `""`
}

// kindName returns the name of a kind of JSON value, with its article.
func kindName(kind jsontext.Kind) string {
	switch kind {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '[':
		return "an array"
	}
	return "an object"
}
