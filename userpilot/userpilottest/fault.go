package userpilottest

import (
	"cmp"
	"net/http"
	"time"
)

// Fault is what goes wrong with one identify. The zero value is nothing. A call with
// a fault counts for the limit like any other. What the API itself refuses, for its
// key, the limit or its body, is refused as usual, unless the fault cuts it off or
// has a Status that is not a 2xx.
type Fault struct {
	// Delay is waited before anything else, or until the client has gone: then
	// nothing is applied.
	Delay time.Duration
	// Status is answered. With a 2xx the call is looked at as usual, and if it is
	// taken, answered with this status; with any other nothing is looked at.
	Status int
	// RetryAfter is sent if positive, in whole seconds rounded up. Without a Status
	// it makes it 429.
	RetryAfter time.Duration
	// Cut breaks the connection off instead of an answer, and nothing is applied.
	Cut bool
	// CutAfterApply breaks it off after the call was applied: the answer is lost.
	CutAfterApply bool
	// HTML answers with a page, as a load balancer does. Without a Status it is 502.
	HTML bool
	// Body, if not nil, is the answer's body.
	Body []byte
	// CutBody breaks the connection off in the middle of the answer's body.
	CutBody bool
	// Endless goes on with the answer's body as fast as it is read, for ever.
	Endless bool
	// Trickle, if positive, sends the body byte by byte with this pause before each,
	// for ever.
	Trickle time.Duration
}

// status returns the status that the fault asks for, 0 if none.
func (f Fault) status() int {
	switch {
	case f.Status != 0:
		return f.Status
	case f.HTML:
		return http.StatusBadGateway
	case f.RetryAfter > 0:
		return http.StatusTooManyRequests
	}
	return 0
}

// refuses reports whether the fault answers instead of the API.
func (f Fault) refuses() bool {
	status := f.status()
	return status != 0 && !isSuccess(status)
}

func isSuccess(status int) bool { return status >= 200 && status <= 299 }

const htmlPage = "<!DOCTYPE html>\n<html><head><title>Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\n"

// dress changes an answer that is otherwise ready.
func (f Fault) dress(a answer) answer {
	a.status = cmp.Or(f.status(), a.status)
	if f.RetryAfter > 0 {
		a.setRetryAfter(f.RetryAfter)
	}
	if f.HTML {
		a.header.Set("Content-Type", "text/html; charset=utf-8")
		a.body = []byte(htmlPage)
	}
	if f.Body != nil {
		a.body = f.Body
	}
	switch {
	case f.CutBody:
		a.ending = cutShort
	case f.Trickle > 0:
		a.ending, a.pause = trickling, f.Trickle
	case f.Endless:
		a.ending = endless
	}
	return a
}
