package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/identify-worker/identify-worker/userpilot"
)

// verdict is what the answer to an attempt means for its events.
type verdict int

const (
	delivered verdict = iota
	rejected          // Userpilot itself refuses the body: the events are at fault
	refused           // the call was refused; whose fault that is, other users' calls show
	retry             // the API is failing, for all users or just for this one
	throttled         // the fleet called too often
	notSent           // nothing was sent, so nothing is known about the events
	panicked          // the worker panicked on the events
)

// String returns the name for spans.
func (v verdict) String() string {
	return [...]string{"delivered", "rejected", "refused", "retry", "throttled", "cut_off", "panic"}[v]
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
		return classifyAnswer(failure.Status, failure.FromAPI)
	case errors.Is(err, errNotNow) && !(ok && failure.Sent):
		return notSent
	case userpilot.Cause(err) == userpilot.CauseProxy:
		return refused
	default:
		return retry
	}
}

// classifyAnswer maps an answer that did not accept the call to a verdict.
func classifyAnswer(status int, fromAPI bool) verdict {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		if fromAPI {
			return rejected
		}
		return refused
	case http.StatusTooManyRequests:
		return throttled
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusLocked:
		return retry
	case http.StatusNetworkAuthenticationRequired:
		return refused
	}
	if status >= 200 && status < 500 {
		return refused
	}
	return retry // 5xx, and numbers that are no HTTP status
}

// rule tells what the gate does with a call that failed or was refused.
type rule struct {
	reason string // why calls stop, if they do: for logs, reports and metrics
	text   string // the same for readers
	users  int    // so many users in a row, without evidence, stop all calls, whatever the others met
	recent bool   // another user's success in the last minute is evidence, not only one since
	slow   bool   // another user's success while the call waited for its answer is evidence
	never  bool   // it is never the event's fault: it never counts as an attempt
	of     func(status int) bool
}

// outage is the reason of a stop while the API is failing. All other reasons are holds.
const outage = "outage"

// rules has the rule for a verdict of retry, and then those for refused: the first one counts that is
// of the answer's status, 0 if there was none.
func rules() []rule {
	is := func(statuses ...int) func(int) bool {
		return func(status int) bool { return slices.Contains(statuses, status) }
	}
	from := func(least, most int) func(int) bool {
		return func(status int) bool { return status >= least && status <= most }
	}
	const proxy, refused = "the proxy does not let the calls through", "the calls are refused"
	return []rule{
		{reason: outage, text: "Userpilot seems to be down", users: 3, slow: true, of: is()},
		{reason: "unauthorized", text: "Userpilot does not accept the API key (401)", users: 1, of: is(401)},
		{reason: "forbidden", text: "the calls are forbidden (403)", users: 3, recent: true, of: is(403)},
		{reason: "not_found", text: "the endpoint is not found (404)", users: 3, recent: true, of: is(404)},
		{reason: "method_not_allowed", text: "the endpoint does not allow the calls (405)", users: 3, recent: true, of: is(405)},
		{reason: "redirect", text: "the endpoint redirects elsewhere (3xx)", users: 3, recent: true, of: from(300, 399)},
		{reason: "not_the_api", text: "a web page answers instead of Userpilot", users: 1, of: from(200, 299)},
		{reason: "proxy", text: proxy, users: 1, never: true, of: is(407)},
		{reason: "proxy", text: proxy, users: 3, never: true, of: is(0)}, // it connects us to nothing
		{reason: "network_login", text: "the network asks for a login (511)", users: 1, never: true, of: is(511)},
		{reason: "refused", text: refused, users: 1, never: true, of: is(402, 421, 426, 451, 495, 496, 497, 498, 499)}, // the last five are nginx's
		{reason: "refused", text: refused, users: 3, recent: true, of: func(int) bool { return true }},
	}
}

// ruleOf returns the rule for a verdict of refused or retry, and the answer's status.
func ruleOf(v verdict, status int) rule {
	all := rules()
	if v == retry {
		return all[0]
	}
	return all[slices.IndexFunc(all, func(r rule) bool { return r.of(status) })]
}

// HoldText returns a readable text for the Hold of a [fleet.Report]. It returns an unknown reason as
// it is: the replica runs another version.
func HoldText(reason string) string {
	for _, r := range rules() {
		if r.reason == reason {
			return r.text
		}
	}
	return reason
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
// status, not by verdict: a 403 is a 4xx, although it may reject no event.
func result(err error) string {
	f, ok := errors.AsType[*userpilot.Error](err)
	switch {
	case !ok || f.Status == 0:
		return "error"
	case f.Status >= 200 && f.Status < 300: // a web page
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
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return cmp.Or(userpilot.Cause(err), userpilot.CauseConnection)
}
