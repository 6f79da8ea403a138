package userpilot

import (
	"fmt"
	"strings"
	"time"
)

// Failure is an attempt that was not answered with a 2xx.
type Failure struct {
	// Status is the status of the answer, 0 if there was none.
	Status int
	// Code, Message and RequestID are the answer's error_code, its message (or what
	// of error and details there is) and its x-request-id: on one line, printable,
	// without the key, and cut to 64, 256 and 64 characters. They are Userpilot's
	// words, which may quote the user: they belong into a dead letter, beside the
	// user's own data, and not into a log.
	Code, Message, RequestID string
	// RetryAfter is what the answer asked for, 15 minutes at most, and 0 if it did
	// not. Userpilot documents no Retry-After.
	RetryAfter time.Duration
	// Err is why there was no answer: the guard's error, the end of the context (its
	// cause), or what broke, which names hosts and addresses but nothing that was sent.
	Err error
	// Sent is whether anything may have reached Userpilot. It is false only where
	// that is impossible: no connection, or nothing written to it.
	Sent bool
	// Unconnected is whether the attempt ended before it had a connection: none could be
	// made, or not in time. [Call.Begin] was not called then.
	Unconnected bool
}

// Error names the status, and the code and the request where they look like mere
// identifiers. It never holds Message.
func (f *Failure) Error() string {
	if f.Status == 0 {
		return fmt.Sprintf("identify: no answer: %v", f.Err)
	}
	text := fmt.Sprintf("identify: answered %d", f.Status)
	if isIdentifier(f.Code) {
		text += ", code " + f.Code
	}
	if isIdentifier(f.RequestID) {
		text += ", request " + f.RequestID
	}
	return text
}

// Unwrap returns Err.
func (f *Failure) Unwrap() error { return f.Err }

// isIdentifier tells a code or an id from a text: no spaces, and no @ as in an address.
func isIdentifier(text string) bool {
	return text != "" && strings.Trim(text,
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}
