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

// Parse reads the body of an identify and keeps it: the caller must not change it
// any more. The error is always an *[InvalidError].
//
// A body is refused only if Userpilot documents that it refuses it, or if nobody
// could say what it means: it is larger than [MaxEventBytes]; it is not exactly
// one JSON object in UTF-8 (a byte order mark, a lone surrogate and more than
// 10,000 levels are errors too); user_id is missing, repeated, empty or not a
// string; company is neither an object nor null, or has no id and no company_id
// that is more than null or "". All else is for Userpilot to decide, be it a
// metadata that is no object, a numeric company id or an unknown member. Names
// match exactly, after unescaping: User_ID is an unknown member.
//
// An Event comes with an error too. It has the body, and the user if one valid
// user_id was found before the text broke off, so that a dead letter can name them.
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

// parser is one Parse. Its methods return an error only where the text cannot be
// read on; what is merely wrong goes to refuse, and reading goes on, for the user
// may come last.
type parser struct {
	*reader
	event Event
	err   *InvalidError
	users int // user_id members seen
}

// refuse keeps the first problem.
func (p *parser) refuse(err *InvalidError) {
	if p.err == nil {
		p.err = err
	}
}

// refuseSyntax puts a broken text above what is wrong in its readable part, but
// not above its size.
func (p *parser) refuseSyntax(err error) {
	if len(p.event.body) <= MaxEventBytes {
		p.err = p.syntaxError(err)
	}
}

// syntaxError says where the text is broken. The decoder's own words are left out,
// as they quote the text.
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
		return invalid("body", "goes on after its object, after byte %d", object.end)
	}
	return nil
}

// object reads the object that comes next and returns where it lies. member is told
// each name and must read its value.
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
		p.refuse(invalid("user_id", "is there twice"))
	case kind == 'n':
		p.refuse(invalid("user_id", "is null"))
	case kind != '"':
		p.refuse(invalid("user_id", "must be a string, not %s", article(kind)))
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
		p.event.mergeable = false // nobody documents what it does
	case jsontext.KindInvalid: // ReadValue says why
	default:
		p.refuse(invalid("company", "must be an object, not %s", article(kind)))
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
		spelled := spelling(name)
		if spelled == noCompany {
			return nil
		}
		ids++
		if isUsableID(value) {
			usable++
		}
		if value.Kind() != '"' {
			p.event.mergeable = false
		}
		p.event.companyName, p.event.companyID = spelled, p.span(value)
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

func spelling(name []byte) companyName {
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

// article names a kind of JSON value in a sentence.
func article(kind jsontext.Kind) string {
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
