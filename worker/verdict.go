package worker

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/identify-worker/identify-worker/userpilot"
)

// verdict is what an attempt means for its events.
type verdict int

const (
	delivered verdict = iota
	rejected          // the events are at fault: only another event can help
	retry             // the API is in trouble, or just for this user
	throttled         // the fleet called too often
	held              // our key or our address is wrong: nobody's events are at fault
	notSent           // nothing was sent, and nothing is known
	panicked          // the worker panicked on the events
)

// String names it for spans.
func (v verdict) String() string {
	return [...]string{"delivered", "rejected", "retry", "throttled", "held", "cut_off", "panic"}[v]
}

// judge is the table of answers. err is what a Caller returned.
func classify(err error) verdict {
	if err == nil {
		return delivered
	}
	if errors.As(err, new(*panicError)) {
		return panicked
	}
	failure, ok := errors.AsType[*userpilot.Failure](err)
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
	default: // 5xx, and what is no status at all
		return retry
	}
}

// holdReason names a hold for logs and metrics.
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

// errNotNow ends an attempt before anything was sent, and nothing is known of the events by it. The
// others say why.
var (
	errNotNow            = errors.New("not now")
	errSlotExpired       = fmt.Errorf("%w: its slot is void", errNotNow)
	errMembershipExpired = fmt.Errorf("%w: the membership is not certain", errNotNow)
	errGivenUp           = fmt.Errorf("%w: its claim is being given up", errNotNow)
	errGateClosed        = fmt.Errorf("%w: calls are stopped", errNotNow)
)

// Why a call that was prepared was not made: the reasons of the metric.
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

// unmade returns why an attempt has not become a call, or "" if it may have.
func unmade(err error) string {
	failure, ok := errors.AsType[*userpilot.Failure](err)
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
