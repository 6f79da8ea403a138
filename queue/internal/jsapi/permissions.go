package jsapi

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// DenialTimeout is how long a request may go unanswered before [Conn.WithPermissionCheck] checks
// whether it is permitted at all, and how often it checks from then on. The server does not answer a
// request that it denies: it reports a violation to the connection, without naming the request. The
// connection keeps only the last violation, which may belong to another request. So if there is a new
// violation, WithPermissionCheck probes the permissions one by one, as [Conn.MissingPermissions] does.
const DenialTimeout = 300 * time.Millisecond

// WithPermissionCheck makes a request that needs some permissions. If one of them turns out to be
// missing, or the permission to receive a reply, the request ends with a [*PermissionError].
func (c *Conn) WithPermissionCheck(ctx context.Context, ask func(context.Context) error, needed ...Permission) error {
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := time.AfterFunc(DenialTimeout, func() {
		for seen := error(nil); asking.Err() == nil; Pause(asking, DenialTimeout) {
			violation := c.Violation()
			if IsSame(violation, seen) {
				continue
			}
			seen = violation
			if denied := c.firstDenied(asking, append(needed, c.InboxRight())); denied != nil {
				cancel(denied)
			}
		}
	})
	defer look.Stop()
	err := ask(asking)
	if denied := AsPermissionError(context.Cause(asking)); denied != nil && err != nil {
		return denied
	}
	return err
}

// firstDenied probes permissions and returns the error of the first that is missing, or nil.
func (c *Conn) firstDenied(ctx context.Context, needed []Permission) error {
	for _, r := range needed {
		if may, err := c.IsPermitted(ctx, r); err == nil && !may {
			return c.in(r).Denied()
		}
	}
	return nil
}

// MissingPermissions returns the permissions that this connection's user lacks. It blocks for a few
// round trips if none is missing, and otherwise for one or two per permission.
func (c *Conn) MissingPermissions(ctx context.Context, rights []Permission) (missing []Permission, err error) {
	before, left := c.Violation(), []Permission(nil)
	for _, r := range rights {
		r = c.in(r)
		if r.Overheard {
			left = append(left, r)
			continue
		}
		if err := c.probe(r); err != nil {
			return nil, fmt.Errorf("check the permission to %v: %w", r, err)
		}
	}
	if err := c.Flush(ctx); err != nil {
		return nil, fmt.Errorf("check the permissions of this user: %w", err)
	}
	if !IsSame(c.Violation(), before) {
		left = rights
	}
	for _, r := range left {
		may, err := c.IsPermitted(ctx, r)
		if err != nil {
			return missing, fmt.Errorf("check the permission to %v: %w", r, err)
		}
		if !may {
			missing = append(missing, c.in(r))
		}
	}
	return missing, nil
}

// maxProbes is how often a permission is probed while the server denies other requests at the same
// time: the connection keeps only the last denial.
const maxProbes = 20

// IsPermitted probes a permission without changing anything. If the server denies the probe, it
// says so before it answers a ping, and the connection keeps the last such error.
func (c *Conn) IsPermitted(ctx context.Context, r Permission) (bool, error) {
	if !c.NATS.IsConnected() {
		return false, nats.ErrDisconnected // otherwise nats.go would send it over the next connection
	}
	r = c.in(r)
	for range maxProbes {
		before := c.lastDenial()
		err := c.probe(r)
		if err == nil {
			err = c.Flush(ctx)
		}
		switch after := c.lastDenial(); {
		case err != nil:
			return false, err
		case IsSame(after, before), r.Overheard && IsRefusedReply(after):
			return true, nil
		case r.matches(after):
			return false, nil
		}
	}
	return false, errors.New("too many permission errors at the same time")
}

// purgeNothing is the request to purge the messages on a subject that no stream of ours has. The
// request to purge those below sequence 1, of which there are none, purges all on servers before
// 2.12.10 and 2.14.2.
const purgeNothing = `{"filter":"` + UnknownName + `"}`

// probe uses a permission in a way that has no effect: an empty request changes nothing, except one
// to purge a stream, which gets purgeNothing instead; and the header demands a stream of a name that
// does not exist. (A malformed request would work too, but would log a warning on the server.) If
// others may listen on the subject, the server must not even pass the message on: it rejects the
// reply subject, but only after it has checked the permission.
func (c *Conn) probe(r Permission) error {
	if r.Subscribe {
		sub, err := c.NATS.SubscribeSync(r.Probe)
		if err != nil {
			return err
		}
		return sub.Unsubscribe()
	}
	m := nats.NewMsg(r.Probe)
	m.Header.Set("Nats-Expected-Stream", UnknownName)
	m.Data = []byte("{}")
	if strings.Contains(r.Probe, ".API.STREAM.PURGE.") { // an empty one purges the stream
		m.Data = []byte(purgeNothing)
	}
	if r.Overheard {
		m.Reply = refusedReply
	}
	return c.NATS.PublishMsg(m)
}

// matches reports whether a violation belongs to r.Probe. The violation's text must not be passed
// on: subjects contain user ids.
func (r Permission) matches(violation error) bool {
	if violation == nil {
		return false
	}
	what := "Publish to "
	if r.Subscribe {
		what = "Subscription to "
	}
	return strings.Contains(violation.Error(), what+strconv.Quote(r.Probe))
}

// refusedReply is a reply subject that the server reserves for itself, whatever the user's
// permissions.
const refusedReply = "_R_." + UnknownName

// IsRefusedReply reports whether a denial is only the answer to a probe: the permission was found,
// and the server has refused the reply subject.
func IsRefusedReply(denial error) bool {
	return denial != nil && strings.Contains(denial.Error(), strconv.Quote(refusedReply))
}

// lastDenial is the connection's last permission violation; nil if there is none, or if another
// error came after it. Each violation is an error value of its own.
func (c *Conn) lastDenial() error {
	if err := c.NATS.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return err
	}
	return nil
}

// IsSame reports whether nothing was denied between two calls of [Conn.Violation].
func IsSame(a, b error) bool { return a == b } //nolint:errorlint // it is about which error it is, not of what kind

// Violation is the connection's last permission violation; nil if there is none, if another error
// came after it, or if it only says that a probed permission was found. It does not block.
func (c *Conn) Violation() error {
	if err := c.lastDenial(); !IsRefusedReply(err) {
		return err
	}
	return nil
}

// Flush blocks until the server has processed everything sent so far, or for [CallTimeout].
func (c *Conn) Flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	return c.NATS.FlushWithContext(ctx)
}
