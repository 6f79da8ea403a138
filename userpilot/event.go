package userpilot

import (
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxEventBytes is the largest body of an event that [Parse] takes and that
// [Merge] makes. The bound is ours, Userpilot documents none.
const MaxEventBytes = 512 << 10

// Event is one identify: the body of a POST /v1/identify and what must be known
// of it to deliver it. An Event is immutable and safe for concurrent use, as long
// as nobody changes the body that it was parsed from. The zero value has no body
// and no user.
type Event struct {
	body   []byte
	userID string

	// Where the values of the known members lie in body, quotes and braces
	// included. Only meaningful if mergeable.
	user, metadata, company, companyID span

	companyName companyName // how the company's id is spelled
	mergeable   bool        // as far as can be told before Merge reads the properties
}

// span is a range of a body. Events wait by the hundred thousand, hence not a
// slice; no mergeable body is larger than MaxEventBytes.
type span struct{ start, end uint32 }

func (s span) of(body []byte) jsontext.Value { return jsontext.Value(body[s.start:s.end]) }

func (s span) isAbsent() bool { return s.end == 0 }

// companyName is the member that holds a company's id. Userpilot documents both.
type companyName uint8

const (
	noCompany companyName = iota
	companyByID
	companyByCompanyID
)

// UserID returns the user that the event is about. It is empty only for the zero
// value and for events that [Parse] refused.
func (e Event) UserID() string { return e.userID }

// Body returns the bytes that Parse was given, not a copy. They must not be changed.
func (e Event) Body() []byte { return e.body }

// InvalidError says why a body is not an identify that could be sent.
type InvalidError struct {
	// Field is the member that is wrong: "user_id", "metadata", "company" or
	// "company.id"; "body" if the whole is. Only [Event.CheckStrict] names members
	// of the user's own choice here, quoted and cut to 64 characters.
	Field string
	// Problem goes on from the field: "is missing". It never holds a value.
	Problem string
}

// Error returns the field and the problem.
func (e *InvalidError) Error() string { return e.Field + ": " + e.Problem }

func invalid(field, format string, args ...any) *InvalidError {
	return &InvalidError{Field: field, Problem: fmt.Sprintf(format, args...)}
}
