package jsapi

import (
	"cmp"
	"errors"
	"fmt"
)

// ErrForeignStream says that another stream stored a message. The error is a [*ForeignStreamError]
// that names it.
var ErrForeignStream = errors.New("another stream took the message")

// ForeignStreamError says that a stream that is none of the pipeline's has acknowledged a message
// that belongs into one. It is also an [ErrForeignStream]. The pipeline does not have the message,
// and publishing it again would end the same way.
type ForeignStreamError struct {
	Stream string // that has the message, with its JetStream domain if that is the difference
	Want   string // the pipeline's
}

// Error names both streams and what to do.
func (e *ForeignStreamError) Error() string {
	return fmt.Sprintf("%v: %s has it, not %s; take the pipeline's subjects out of %s and of the account's imports, then create %s if it is missing",
		ErrForeignStream, e.Stream, e.Want, e.Stream, e.Want)
}

// Is makes a ForeignStreamError an [ErrForeignStream].
func (e *ForeignStreamError) Is(target error) bool { return target == ErrForeignStream }

// CheckSource returns a [*ForeignStreamError] unless an acknowledgement came from the stream that
// it should. An acknowledgement has a domain if the server has one.
func (c *Conn) CheckSource(stream, gotStream, gotDomain string) error {
	domain := c.domain
	if domain == "" && gotDomain != "" { // a leaf node without JetStream has no domain, and passes requests on
		domain = cmp.Or(c.NATS.ConnectedDomain(), gotDomain)
	}
	switch {
	case gotStream != stream:
		return &ForeignStreamError{Stream: Cut(Clean(gotStream), maxForeignName), Want: stream}
	case gotDomain != domain:
		return &ForeignStreamError{
			Stream: fmt.Sprintf("%s in the domain %s", stream, cmp.Or(Cut(Clean(gotDomain), maxForeignName), "(none)")),
			Want:   fmt.Sprintf("%s in the domain %s", stream, domain),
		}
	}
	return nil
}

// maxForeignName bounds what is shown of a name that others have chosen.
const maxForeignName = 128
