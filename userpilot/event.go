package userpilot

import (
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxEventBytes is the size of the largest body that [Parse] accepts and that [Merge]
// makes. The bound is ours; Userpilot documents none.
const MaxEventBytes = 512 << 10

// Event is one identify: the body of a POST /v1/identify, and what delivering it
// requires. An Event is immutable and safe for concurrent use, as long as the body
// that it was parsed from is not changed. The zero value has no body and no user.
type Event struct {
	body   []byte
	userID string

	// The spans of the known members' values in body, including quotes and braces.
	// Only valid if mergeable.
	user, metadata, company, companyID span

	companyName companyName // which member has the company's id
	mergeable   bool        // as far as Parse knows; Merge also checks the properties
}

// span is a range of a body. It is smaller than a slice, because hundreds of thousands
// of events may wait; no mergeable body is larger than MaxEventBytes.
type span struct{ start, end uint32 }

func (s span) of(body []byte) jsontext.Value { return jsontext.Value(body[s.start:s.end]) }

func (s span) isAbsent() bool { return s.end == 0 }

// companyName is the member that has a company's id. Userpilot documents both names.
type companyName uint8

const (
	noCompany companyName = iota
	companyByID
	companyByCompanyID
)

// UserID returns the event's user. It is empty only for the zero value and for events
// that [Parse] refused without knowing their user.
func (e Event) UserID() string { return e.userID }

// CompanyID returns the id of the company that the event names, as it is in JSON. It is empty if there
// is none, or if the event has members whose meaning is not documented.
func (e Event) CompanyID() string {
	if !e.mergeable || e.companyID.isAbsent() {
		return ""
	}
	return string(e.companyID.of(e.body))
}

// Body returns the body that was parsed, not a copy. The caller must not change it.
func (e Event) Body() []byte { return e.body }

// InvalidError is the reason why a body is not a valid identify.
type InvalidError struct {
	// Field is the invalid member: "user_id", "metadata", "company" or "company.id";
	// "body" for the body as a whole. Only [Event.CheckStrict] puts names chosen by the
	// publisher here, quoted and cut to 64 characters.
	Field string
	// Problem continues the sentence after the field: "is missing". It never contains a
	// value.
	Problem string
}

// Error returns the field and the problem.
func (e *InvalidError) Error() string { return e.Field + ": " + e.Problem }

func invalid(field, format string, args ...any) *InvalidError {
	return &InvalidError{Field: field, Problem: fmt.Sprintf(format, args...)}
}
