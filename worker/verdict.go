package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/identify-worker/identify-worker/userpilot"
)

// verdict is what the answer to an attempt means for its events.
type verdict int

const (
	delivered verdict = iota
	rejected          // the events are at fault: resending them cannot help
	retry             // the API is failing, for all users or just for this one
	throttled         // the fleet called too often
	held              // our key or our address is wrong: no event is at fault
	notSent           // nothing was sent, so nothing is known about the events
	panicked          // the worker panicked on the events
)

// String returns the name for spans.
func (v verdict) String() string {
	return [...]string{"delivered", "rejected", "retry", "throttled", "held", "cut_off", "panic"}[v]
}

// classify maps the error of a Caller to a verdict.
func classify(err error) verdict {
	if err == nil {
		return delivered
	}
	if errors.As(err, new(*panicError)) {
		return panicked
	}
	failure, ok := errors.AsType[*userpilot.Error](err)
	switch {
	case ok && failure.Status != 0:
		return classifyStatus(failure.Status)
	case errors.Is(err, errNotNow) && !(ok && failure.Sent):
		return notSent
	default:
		return retry
	}
}

func classifyStatus(status int) verdict {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return held
	case http.StatusTooManyRequests:
		return throttled
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusLocked:
		return retry
	}
	switch {
	case status >= 200 && status < 300:
		return delivered
	case status >= 300 && status < 400:
		return held
	case status >= 400 && status < 500:
		return rejected
	default: // 5xx, and numbers that are no HTTP status
		return retry
	}
}

// holdReason returns the name of a hold for logs and metrics.
func holdReason(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "unauthorized"
	case http.StatusForbidden:
		return "forbidden"
	case http.StatusNotFound:
		return "not_found"
	case http.StatusMethodNotAllowed:
		return "method_not_allowed"
	default:
		return "redirect"
	}
}

// errNotNow ends an attempt before anything was sent; it says nothing about the events. The other
// errors wrap it with the reason.
var (
	errNotNow            = errors.New("call not made")
	errSlotExpired       = fmt.Errorf("%w: its slot has expired", errNotNow)
	errMembershipExpired = fmt.Errorf("%w: the membership is not valid", errNotNow)
	errGivenUp           = fmt.Errorf("%w: its claim is being released", errNotNow)
	errGateClosed        = fmt.Errorf("%w: the gate is closed", errNotNow)
)

// Why a call was prepared but not made: the reasons of the metric.
const (
	slotExpired       = "slot_void"
	membershipExpired = "membership"
	givenUp           = "given_up"
	gateClosed        = "gate"
	noConnection      = "no_connection"
	lostConnection    = "lost_connection"
	notRecorded       = "journal"
)

func unmadeReasons() []string {
	return []string{slotExpired, membershipExpired, givenUp, gateClosed, noConnection, lostConnection, notRecorded}
}

// unmade returns the reason why an attempt has sent nothing, or "" if it may have sent something.
func unmade(err error) string {
	failure, ok := errors.AsType[*userpilot.Error](err)
	switch {
	case err == nil, ok && (failure.Sent || failure.Status != 0):
		return ""
	case errors.Is(err, errSlotExpired):
		return slotExpired
	case errors.Is(err, errMembershipExpired):
		return membershipExpired
	case errors.Is(err, errGivenUp):
		return givenUp
	case errors.Is(err, errGateClosed):
		return gateClosed
	case ok && failure.Unconnected:
		return noConnection
	case ok:
		return lostConnection
	}
	return ""
}

// result returns the metric's label for the error of an attempt that was made. Labels group by
// status, not by verdict: a 403 is a 4xx, although it holds all calls and rejects no event.
func result(err error) string {
	f, ok := errors.AsType[*userpilot.Error](err)
	switch {
	case !ok || f.Status == 0:
		return "error"
	case f.Status == http.StatusTooManyRequests:
		return "429"
	case f.Status >= 300 && f.Status < 500:
		return "4xx"
	default:
		return "5xx"
	}
}

// errorType returns the span's name for the error of an attempt: the exact status, or what kept the
// answer away. It contains none of the error's text.
func errorType(err error) string {
	f, ok := errors.AsType[*userpilot.Error](err)
	switch {
	case ok && f.Status != 0:
		return strconv.Itoa(f.Status)
	case errors.As(err, new(*panicError)):
		return "panic"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, new(*net.DNSError)):
		return "dns"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "connection"
}
