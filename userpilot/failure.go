package userpilot

import (
	"fmt"
	"strings"
	"time"
)

// Error is the error of an attempt that Userpilot did not accept: it was not answered with a 2xx, or
// something in front of Userpilot answered.
type Error struct {
	// Status is the status of the answer, 0 if there was none.
	Status int
	// Code, Message and RequestID are the answer's error_code (or else its code or type), what it
	// says, whatever its shape, and its x-request-id: on one line, printable, without the key,
	// and cut to 64, 256 and 64 characters. They are Userpilot's words, which may quote the
	// user: they belong in a dead letter, beside the user's own data, and not in a log.
	Code, Message, RequestID string
	// RetryAfter is the answer's Retry-After, 15 minutes at most, or 0 if it has none.
	// Userpilot documents no Retry-After.
	RetryAfter time.Duration
	// FromAPI reports whether the answer's body is JSON, as Userpilot's are. Otherwise a proxy,
	// a firewall or another server may have answered. A 2xx is an Error only if its body begins
	// as HTML; its FromAPI is false.
	FromAPI bool
	// Err is why there was no answer: the error of Begin or Guard, the cause of the
	// context, or a transport error, which may contain hosts and addresses but nothing that
	// was sent or answered. [Cause] sorts them. With a 407, Err says whose it is;
	// with a 400, that the server expects TLS, if the answer says so.
	Err error
	// Sent reports whether anything may have reached Userpilot. It is false only if that
	// is impossible: there was no connection, or nothing was written to it.
	Sent bool
	// Unconnected reports whether the attempt ended before it had a connection: none could
	// be made, or not in time. [Call.Begin] was not called then.
	Unconnected bool
}

// Error returns the status, whether a refusal is not Userpilot's own for want of JSON, and the code and
// the request id if they look like plain identifiers. It never contains Message.
func (f *Error) Error() string {
	if f.Status == 0 {
		return fmt.Sprintf("identify: no answer: %v", f.Err)
	}
	text := fmt.Sprintf("identify: answered %d", f.Status)
	if isSuccess(f.Status) {
		text += " with a web page, which is not Userpilot's answer"
	}
	if f.Status >= 400 && f.Status <= 499 && !f.FromAPI && f.Err == nil {
		text += " without JSON"
	}
	if isIdentifier(f.Code) {
		text += ", code " + f.Code
	}
	if isIdentifier(f.RequestID) {
		text += ", request " + f.RequestID
	}
	if f.Err != nil {
		text += ": " + f.Err.Error()
	}
	return text
}

// Unwrap returns Err.
func (f *Error) Unwrap() error { return f.Err }

// isIdentifier reports whether text is a code or an id and not prose: it has no spaces, and
// no @ as in an address.
func isIdentifier(text string) bool {
	return text != "" && strings.Trim(text,
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}
