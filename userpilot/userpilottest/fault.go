package userpilottest

import (
	"cmp"
	"net/http"
	"slices"
	"time"
)

// Fault is what goes wrong with one identify. The zero value is no fault. A call with
// a fault counts towards the limit like any other. The server still refuses calls for
// their key, the limit or their body, unless the fault cuts the connection or answers
// instead of the API: with a Status that is not a 2xx, or with Instead. Even then it
// refuses a wrong key.
type Fault struct {
	// Delay delays everything else. If the client has gone by then, the call is not
	// applied.
	Delay time.Duration
	// Status is the status of the answer, from 200 to 999. With a 2xx the server handles the
	// call as usual and answers an accepted call with this status, unless Instead is set;
	// with any other status it does not look at the call.
	Status int
	// Instead answers without looking at the call even with a 2xx, as a captive portal does:
	// the call is not applied. Without a Status, the status is then 200.
	Instead bool
	// RetryAfter is sent if positive, in whole seconds rounded up. Without a Status, the
	// status is then 429.
	RetryAfter time.Duration
	// Cut closes the connection instead of answering, and the call is not applied.
	Cut bool
	// CutAfterApply closes the connection after the call was applied: the answer is lost.
	CutAfterApply bool
	// HTML answers with a web page, as a load balancer does. Without a Status and Instead,
	// the status is 502.
	HTML bool
	// Body, if not nil, is the answer's body. Its Content-Type stays JSON unless Header has
	// another.
	Body []byte
	// Header is added to the answer, in the place of what has the same name.
	Header http.Header
	// CutBody closes the connection in the middle of the answer's body.
	CutBody bool
	// Endless sends an answer's body without end, as fast as the client reads it.
	Endless bool
	// Trickle, if positive, sends a body without end, byte by byte with this pause before
	// each byte.
	Trickle time.Duration
}

// status returns the fault's status, 0 if it has none.
func (f Fault) status() int {
	switch {
	case f.Status != 0:
		return f.Status
	case f.Instead:
		return http.StatusOK
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
	return f.Instead || status != 0 && !isSuccess(status)
}

// refusal is the answer instead of the API's, before it is altered.
func (f Fault) refusal() answer {
	if status := f.status(); !isSuccess(status) {
		return refuse(status, "scripted_fault", "this fault was asked for")
	}
	return newAnswer(f.status(), nil)
}

func isSuccess(status int) bool { return status >= 200 && status <= 299 }

const htmlPage = "<!DOCTYPE html>\n<html><head><title>Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\n"

// alter applies the fault to an answer.
func (f Fault) alter(a answer) answer {
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
	for name, values := range f.Header {
		a.header[http.CanonicalHeaderKey(name)] = slices.Clone(values)
	}
	if a.status == http.StatusNoContent || a.status == http.StatusNotModified {
		a.body = nil // HTTP has none
		return a
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
