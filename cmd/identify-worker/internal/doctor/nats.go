package doctor

import (
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot"
)

const (
	near        = 150 * time.Millisecond // round trips to NATS: with what each means for the limit, see checkTrip
	farAway     = 300 * time.Millisecond
	expiresSoon = 14 * 24 * time.Hour
	clockOff    = 2 * time.Second
	clocksApart = 100 * time.Millisecond // of servers
	nearlyFull  = 0.80                   // of a limit
	full        = 0.95
	deadSoon    = 3 * 24 * time.Hour // left to a dead letter
)

func (e *examination) checkLink(l queue.ConnInfo) {
	who := "connected to " + l.URL + ", version " + l.Version
	if l.Inboxes != queue.DefaultInboxPrefix+".>" {
		who += ", replies on " + l.Inboxes
	}
	if err := queue.CheckServerVersion(l.Version); err != nil {
		e.fail("nats", "%s: %v", who, err)
	} else {
		e.ok("nats", "%s, %v away", who, round(l.Trip))
	}
	switch {
	case l.TLS != "":
		e.checkCertificate("nats_tls", l.TLS+", the server's certificate", l.Expires)
	case isThisMachine(l.URL):
		e.ok("nats_tls", "none, but the connection stays on this machine")
	default:
		e.warn("nats_tls", "none: users' data and NATS passwords can be read in transit; see --nats-ca, and tls:// in --nats-url")
	}
	if l.MaxEvent < userpilot.MaxEventBytes {
		e.warn("max_payload", "events above %s cannot be published: raise the server's max_payload to 1MB", render.RoughSize(l.MaxEvent))
	} else {
		e.ok("max_payload", "events of every size can be published")
	}
}

func (e *examination) checkCertificate(check, what string, expires time.Time) {
	switch left := time.Until(expires); {
	case left <= 0: // but the handshake was good: it is an authority's that is not needed
		e.warn(check, "%s: a certificate in its chain expired on %s", what, day(expires))
	case left < expiresSoon:
		e.warn(check, "%s expires in %s, on %s: renew it", what, render.Duration(left), day(expires))
	default:
		e.ok(check, "%s is valid until %s", what, day(expires))
	}
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// isThisMachine reports whether a server's URL is on the loopback interface.
func isThisMachine(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback())
}

func (e *examination) checkRights(denied []queue.Permission, of int, err error) {
	if err != nil {
		e.fail("rights", "%v", err)
		return
	}
	for _, r := range denied {
		switch {
		case r.Optional:
			e.warn("rights", "the user may not %v (%s)", r, r.Use)
		case r.Subscribe:
			e.fail("rights", "the user may not %v (%s): set --nats-inbox-prefix if this user has its own prefix, otherwise allow it on the NATS server", r, r.Use)
		default:
			e.fail("rights", "the user may not %v (%s): allow it on the NATS server; deployments/nats/README.md lists everything that a worker needs", r, r.Use)
		}
	}
	if !e.failed("rights") {
		e.ok("rights", "%d of %d that a worker can use", of-len(denied), of)
	}
}

// checkStreams reports what is wrong with the streams. Where there is none at all, the first worker
// creates them. A running worker creates none that somebody has deleted.
func (e *examination) checkStreams(streams []inspector.StreamState) {
	refused := "" // why the one before is refused
	sound, fresh := 0, !slices.ContainsFunc(streams, func(s inspector.StreamState) bool { return !s.Missing })
	for _, s := range streams {
		switch {
		case s.Err != nil:
			e.fail("streams", "%v", s.Err)
		case s.Missing && s.Refusal != nil && s.Refusal.Error() == refused:
			e.fail("streams", "%s is missing, and cannot be created either", s.Name)
		case s.Missing && s.Refusal != nil:
			refused = s.Refusal.Error()
			e.fail("streams", "%s is missing, and cannot be created: %v", s.Name, flags.Explained(s.Refusal))
		case s.Missing:
			e.checkMissing(s, fresh)
		case len(s.Differences) > 0:
			e.fail("streams", "%v", flags.Explained(&queue.MismatchError{Differences: s.Differences}))
		default:
			sound++
		}
	}
	if sound == len(streams) {
		e.ok("streams", "%d, configured as expected", sound)
	}
}

// checkMissing reports a missing stream that could be created; fresh means that there is none at all.
func (e *examination) checkMissing(s inspector.StreamState, fresh bool) {
	switch {
	case !s.MayCreate:
		e.fail("streams", "%s is missing, and the user may not create it: run identify-worker setup as a user who may", s.Name)
	case fresh:
		e.warn("streams", "%s is missing: the first worker creates it, or identify-worker setup", s.Name)
	default:
		e.fail("streams", "%s is missing, although others exist: run identify-worker setup; workers may run meanwhile", s.Name)
	}
}

func (e *examination) checkStrict(strict bool, err error) {
	switch {
	case err != nil:
		e.warn("strict", "unknown: %v", err)
	case strict:
		e.ok("strict", "requests with unknown fields are rejected")
	default:
		e.warn("strict", "requests with unknown fields are executed, so anyone who publishes in the same NATS account can purge streams: set strict: true in the servers' jetstream block")
	}
}

// checkLimits reports how near the streams are to their limits. The first is the work stream, the
// second has the dead letters.
func (e *examination) checkLimits(streams []inspector.StreamState) {
	for i, s := range streams {
		if s.Missing || s.Err != nil {
			continue
		}
		end := "deliveries stop: raise the limit"
		switch i {
		case 0:
			end = "publishers are rejected: let it drain, or raise the limit"
		case 1:
			end = "dead letters cannot be stored and hold up their users: raise the limit, or replay or discard some"
		}
		usage := queue.Usage{Messages: s.Messages, MaxMessages: uint64(s.MaxMessages), Bytes: s.Bytes, MaxBytes: uint64(s.MaxBytes)}
		if usage.Full() {
			e.fail("limits", "%s is full: %s", s.Name, end)
		} else {
			e.checkUse("limits", s.Name+": messages", float64(s.Messages), float64(s.MaxMessages), "at the limit, "+end)
			e.checkUse("limits", s.Name+": bytes", float64(s.Bytes), float64(s.MaxBytes), "at the limit, "+end)
		}
		if left := time.Until(s.Oldest.Add(s.MaxAge)); i == 1 && s.MaxAge > 0 && s.Messages > 0 && left < min(deadSoon, s.MaxAge/5) {
			e.warn("limits", "%s: the oldest dead letter is deleted in %s: replay or export it", s.Name, render.Duration(left))
		}
	}
	if !e.failed("limits") && !e.warned("limits") {
		e.ok("limits", "no stream is near its limits")
	}
}

// checkUse reports use that is near its limit. Without a limit it reports nothing.
func (e *examination) checkUse(check, what string, use, limit float64, end string) {
	switch {
	case limit <= 0 || use < nearlyFull*limit:
	case use < full*limit:
		e.warn(check, "%s: %.0f%% of the limit is used; %s", what, 100*use/limit, end)
	default:
		e.fail(check, "%s: %.0f%% of the limit is used; %s", what, 100*use/limit, end)
	}
}

// checkConsumers reports which streams have no room for a fleet's consumers. The server counts them
// for each stream: a replica that is alone needs one on the work stream, the first one, and several
// replicas need one for each partition.
func (e *examination) checkConsumers(streams []inspector.StreamState, account, partitions int) {
	for i, s := range streams {
		limit := queue.ConsumerLimit(s.MaxConsumers, account)
		switch {
		case limit == 0 || s.Missing || s.Err != nil:
		case i == 0 && limit < partitions:
			e.warn("storage", "%s: %d consumers are allowed, and several replicas need %d, one for each partition: so one replica works, and the others stand by: raise max_consumers of the account or of the stream to share the work", s.Name, limit, partitions)
		case i > 0 && s.Consumers >= limit:
			e.fail("storage", "%s: all of the %d consumers that are allowed are in use: another replica cannot work: raise max_consumers of the account or of the stream", s.Name, limit)
		}
	}
}

// checkAccount reports how near the account is to its limits. missing is the number of streams
// that are still to be created.
func (e *examination) checkAccount(a inspector.Account, missing int, err error) {
	if err != nil {
		e.warn("storage", "unknown: %v", err)
		return
	}
	if a.LimitRequired && missing > 0 {
		e.fail("storage", "%v", flags.Explained(queue.ErrLimitRequired))
	}
	const end = "raise the account's limit"
	e.checkUse("storage", "bytes on disk", float64(a.Bytes), float64(a.MaxBytes), "then publishers are rejected and dead letters cannot be stored: "+end)
	if a.MaxStreams > 0 && a.Streams+missing > a.MaxStreams {
		e.fail("storage", "%d streams are missing, and the account has %d of %d: %s", missing, a.Streams, a.MaxStreams, end)
	}
	if e.failed("storage") || e.warned("storage") {
		return
	}
	limit := "the account has no limit of its own"
	if a.MaxBytes > 0 {
		limit = "of " + render.RoughSize(a.MaxBytes)
	}
	e.ok("storage", "%s used, %s", render.RoughSize(a.Bytes), limit)
}

// checkTrip reports what the round trip to NATS means for the fleet's limit. At a distance,
// replicas reserve slots further ahead and leave more of them unused, but they never exceed the
// limit.
func (e *examination) checkTrip(trip time.Duration) {
	const exact = "NATS is %v away: the limit is never exceeded, and "
	switch {
	case trip <= near:
		e.ok("round_trip", exact+"at least 97%% of it can be used", round(trip))
	case trip <= farAway:
		e.ok("round_trip", exact+"at least 90%% of it can be used", round(trip))
	default:
		e.warn("round_trip", exact+"how much of it can be used is tested only up to %v, where it is 90%%: run the worker closer to NATS", round(trip), farAway)
	}
}

func (e *examination) checkClock(c inspector.Clock) {
	if c.Apart > clocksApart {
		e.warn("clock", "the clocks of NATS servers are at least %v apart: when the leader changes, the limit may be exceeded once or no calls made for that long, and replicas may be considered dead; synchronise them", round(c.Apart))
	}
	off := c.Ahead.Abs()
	direction := "behind"
	if c.Ahead < 0 {
		direction = "ahead of"
	}
	switch {
	case off > clockOff:
		e.warn("clock", "this machine's clock is %s %s the server's: this affects logs and certificates, but not deliveries; synchronise it", render.Duration(off), direction)
	case off <= c.Trip/2:
		e.ok("clock", "the same as the server's, within the %v that can be measured", round(c.Trip/2))
	default:
		e.ok("clock", "this machine's clock is %v %s the server's", round(off), direction)
	}
}

// round keeps the digits that a reader wants.
func round(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
}
