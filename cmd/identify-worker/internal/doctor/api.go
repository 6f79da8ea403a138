package doctor

import (
	"context"
	"net/http"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
)

// documentedPerMinute is Userpilot's limit of identifies for one key.
const documentedPerMinute = 600

func (e *examination) checkRate(r ratelimit.Rate, burst int, own bool, trip time.Duration) {
	whose := "for the whole fleet"
	if own {
		whose = "for each replica"
	}
	a := r.Bounds(burst, own)
	switch {
	case r.Unlimited():
		e.warn("rate", "no limit is enforced, but Userpilot documents %d calls a minute for each key: see --rate", documentedPerMinute)
		return
	case r.PerMinute() > documentedPerMinute:
		e.warn("rate", "%s is more than the %d calls a minute that Userpilot documents for each key: is your limit different?", r, documentedPerMinute)
	default:
		e.ok("rate", "%s %s: at most %d calls in any %v, %.1f%% of the limit in the long run, a burst of %d after a pause",
			r, whose, a.Worst, shortSpan(r), 100*a.Sustained/float64(r.Calls), a.Burst)
	}
	if !own && trip > 0 { // else NATS has no part in it, or is not there
		e.checkTrip(trip)
	}
}

// shortSpan formats the window as the flag takes it: 1m, not 1m0s.
func shortSpan(r ratelimit.Rate) string {
	return ratelimit.Rate{Calls: 1, Window: r.Window}.String()[len("1/"):]
}

func (d *doctor) askAPI(ctx context.Context, e *examination, client *userpilot.Client) {
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, d.replica.Config.Timeout)
	defer cancel()
	v, err := client.Validate(ctx)
	e.checkAPI(d.replica.Endpoint, v, err)
	if err == nil {
		e.checkKey(v, client.KeyFingerprint())
	}
}

// slow is longer than a connection or an answer takes even from another continent.
const slow = time.Second

func (e *examination) checkAPI(endpoint string, v userpilot.Validation, err error) {
	at := ""
	if v.Address != "" {
		at = " at " + v.Address
	}
	if err != nil {
		e.fail("api", "%s%s: %v: %s", endpoint, at, err, hint(err))
		return
	}
	connected, answered := round(v.Connected), round(v.Took-v.Connected)
	if v.Connected > slow || v.Took-v.Connected > slow {
		e.warn("api", "%s%s is slow: connecting takes %v, and the answer another %v: is the network or a proxy overloaded? Calls work, but calls that need a new connection are late, and without a rate only --concurrency limits them", endpoint, at, connected, answered)
	} else {
		e.ok("api", "%s%s answers: connecting takes %v, and the answer another %v", endpoint, at, connected, answered)
	}
	if v.TLS != "" {
		e.checkCertificate("api_tls", v.TLS+", the endpoint's certificate", v.Expires)
	}
}

// hint says what to do about an API that cannot be reached.
func hint(err error) string {
	switch userpilot.Cause(err) {
	case userpilot.CauseDNS:
		return "is the name in --endpoint correct, and does this machine's DNS resolve it?"
	case userpilot.CausePrivateAddress:
		return "see --allow-endpoint"
	case userpilot.CauseCertificate:
		return "does a proxy replace certificates? Are this machine's clock and root certificates correct?"
	case userpilot.CauseTLS:
		return "are the scheme and the port in --endpoint correct?"
	case userpilot.CauseProxy:
		return "see --proxy"
	case userpilot.CauseTimeout:
		return "no answer within --timeout: does a firewall block it? See --proxy"
	}
	return "see --endpoint and --proxy"
}

func (e *examination) checkKey(v userpilot.Validation, fingerprint string) {
	status := v.Status
	switch {
	case v.Page:
		e.fail("key", "cannot tell whether %s is valid, GET /v1/validate answered %d with a web page, which is not Userpilot's answer: does a captive portal or a proxy stand in between (see --proxy), or is --endpoint the wrong host?", fingerprint, status)
	case status >= 200 && status <= 299:
		e.ok("key", "%s is valid", fingerprint)
	case (status == http.StatusUnauthorized || status == http.StatusForbidden) && !v.FromAPI:
		e.fail("key", "cannot tell whether %s is valid, GET /v1/validate answered %d without JSON, as Userpilot does not: does a proxy or a firewall refuse it (see --proxy)? If not, see %s", fingerprint, status, flags.KeyVariable)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		e.fail("key", "%s is not valid, GET /v1/validate answered %d: see %s and --api-key-file; an app token (NX-…) is not an API key", fingerprint, status, flags.KeyVariable)
	case status == http.StatusProxyAuthRequired:
		e.fail("key", "cannot tell whether %s is valid, a proxy answered 407: it asks for a user and a password, see --proxy", fingerprint)
	case v.Err != nil:
		e.fail("key", "cannot tell whether %s is valid, GET /v1/validate answered %d: %v: %s", fingerprint, status, v.Err, hint(v.Err))
	case status == http.StatusNetworkAuthenticationRequired:
		e.fail("key", "cannot tell whether %s is valid, the network asks for a login (511): log this machine in, or see --proxy", fingerprint)
	case status == http.StatusTooManyRequests || status >= 500:
		e.warn("key", "cannot tell whether %s is valid, GET /v1/validate answered %d: Userpilot, or something in front of it, throttles or fails: try again later", fingerprint, status)
	default:
		e.warn("key", "cannot tell whether %s is valid, GET /v1/validate answered %d: is --endpoint Userpilot's API? The first call will show", fingerprint, status)
	}
}
