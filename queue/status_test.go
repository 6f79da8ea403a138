//go:build !noembed

package queue

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

func (s *sim) status(q *Queue) *Status {
	s.t.Helper()
	status, err := NewInspector(q).Status(s.t.Context())
	s.must(err)
	return status
}

// bury stores dead letters as a worker would.
func (s *sim) bury(q *Queue, n int, reason Reason) {
	s.t.Helper()
	for i := range n {
		_, err := q.api.JetStream.PublishMsg(s.t.Context(), &nats.Msg{
			Subject: deadSubject(q.topology, reason, Position{time.Now(), uint64(i)}, ""),
			Header:  Death{Reason: reason, User: "ann"}.headers(Event{Name: Position{time.Now(), uint64(i)}, Partition: "0"}, time.Now()),
		})
		s.must(err)
	}
}

// A status is complete without a worker's help, and for any number of partitions.
func TestStatus(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(nil, Topology{Partitions: 3}) // it is 16
		empty := s.status(q)
		if empty.Partitions != 16 || len(empty.Unclaimed) != 17 || len(empty.Replicas) != 0 || empty.Backlog != 0 || !empty.Rate.Unlimited() {
			t.Errorf("of nothing: %+v", empty)
		}
		if left, ok := empty.DrainTime(); left != 0 || !ok {
			t.Errorf("nothing drains in %v", left)
		}
		s.publish(q, "ann", "bob", "cleo")
		s.bury(q, 3, Rejected)
		s.bury(q, 2, Invalid)
		time.Sleep(90 * time.Second)
		if _, ok := s.status(q).DrainTime(); ok {
			t.Error("drains without workers")
		}
		r := s.replica(MemberConfig{Host: "pod-1", Version: "v1", Rate: Rate{600, time.Minute}, Report: func() Report {
			return Report{Recent: Recent{Span: 30 * time.Second, Delivered: 40, Merged: 20, Dead: 5, Calls: 25}}
		}})
		s.await(5*time.Second, "at work", func() bool { return r.Held() == 17 })
		s.await(5*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
		s.must(r.StartCooldown(time.Minute)(t.Context()))
		time.Sleep(time.Second)
		got := s.status(q)
		if len(got.Replicas) != 1 || len(got.Unclaimed) != 0 || got.Rate.Calls != 600 {
			t.Fatalf("got %+v", got)
		}
		if age := got.Time.Sub(got.Replicas[0].Joined); age < time.Second || age > 10*time.Second {
			t.Errorf("the replica is %v old", age)
		}
		if left := got.QuietUntil.Sub(got.Time); left < 50*time.Second || left > time.Minute {
			t.Errorf("a cooldown of %v", left)
		}
		if used := got.RateUsed(); used != 50 {
			t.Errorf("%v calls a minute, want 50", used)
		}
		if want := map[Reason]uint64{Rejected: 3, Invalid: 2}; !maps.Equal(got.DeadReasons, want) || got.DeadLetters != 5 {
			t.Errorf("the dead are %v", got.DeadReasons)
		}
		got.Backlog = 180
		if left, ok := got.DrainTime(); !ok || left != 2*time.Minute {
			t.Errorf("180 events at 90 a minute drain in %v", left)
		}
		s.must(r.stop())
		if n := len(s.status(q).Replicas); n != 0 {
			t.Errorf("%d replicas after it has left", n)
		}
	})
}

// A scan sees every message once, in order, over gaps and many batches.
func TestScan(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		const letters = 2*jsapi.ScanBatch + 7
		s.bury(q, letters, Rejected)
		stream, err := q.api.JetStream.Stream(t.Context(), deadName)
		s.must(err)
		var want []string
		for seq := uint64(1); seq <= letters; seq++ {
			if seq%7 == 0 || seq > letters-2 {
				s.must(stream.DeleteMsg(t.Context(), seq))
			} else {
				want = append(want, fmt.Sprint(seq))
			}
		}
		var got []string
		for m, err := range q.api.Scan(t.Context(), deadName, jsapi.ScanRange{From: 1}) {
			s.must(err)
			got = append(got, m.Header.Get("Nats-Sequence"))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d messages, want %d", len(got), len(want))
		}
		for _, err := range q.api.Scan(t.Context(), deadName, jsapi.ScanRange{From: letters + 1}) {
			t.Errorf("there is a message past the end: %v", err)
		}
		for range q.api.Scan(t.Context(), deadName, jsapi.ScanRange{From: 1}) {
			break
		}
	})
}

// An error without an answer names the subject.
func TestStatusWithoutAnswers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &line{}
		q := s.queue(l)
		l.silent.Store(true)
		_, err := NewInspector(q).Status(t.Context())
		if err == nil || err.Error() != "read the state of stream USERPILOT_IDENTIFY: no answer on $JS.API.STREAM.INFO.USERPILOT_IDENTIFY: the stream has no leader now, or the server is overloaded" {
			t.Errorf("got %v", err)
		}
	})
}

// statusRights are the permissions for a status, as in the command's help.
var statusRights = []string{
	"$JS.API.STREAM.INFO.*",
	"$JS.API.DIRECT.GET.KV_userpilot_identify",
	"$JS.API.DIRECT.GET.USERPILOT_IDENTIFY_DLQ",
}

// withUsers replaces the server by one with two users: one may do everything, the other may only
// publish to these subjects.
func (s *sim) withUsers(allowed []string) (all, few *nats.Conn) {
	s.t.Helper()
	connect := s.serveUsers(map[string][]string{"all": {">"}, "few": allowed})
	return connect("all"), connect("few")
}

// serveUsers replaces the server by one whose users may only publish to some subjects.
func (s *sim) serveUsers(allowed map[string][]string) (connect func(user string) *nats.Conn) {
	s.t.Helper()
	return s.servePeople(people(allowed)).connect
}

// people maps users to the subjects that each may publish to; ">" allows everything.
type people map[string][]string

// served is a server with users.
type served struct {
	sim     *sim
	server  *natsserver.Server
	options *natsserver.Options
}

// servePeople replaces the server, with these feature flags enabled.
func (s *sim) servePeople(p people, flags ...string) *served {
	s.t.Helper()
	s.Stop()
	options := &natsserver.Options{JetStream: true, StoreDir: s.Dir(), DontListen: true, NoSigs: true, JetStreamMaxMemory: 1 << 20, Users: p.users("_INBOX.>"), FeatureFlags: map[string]bool{}}
	for _, flag := range flags {
		options.FeatureFlags[flag] = true
	}
	n, err := natsserver.NewServer(options)
	s.must(err)
	n.Start()
	s.t.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	return &served{s, n, options}
}

// users may only subscribe to their inboxes.
func (p people) users(inboxes string) (users []*natsserver.User) {
	for user, subjects := range p {
		u := &natsserver.User{Username: user, Password: "x"}
		if !slices.Equal(subjects, []string{">"}) {
			u.Permissions = &natsserver.Permissions{
				Publish:   &natsserver.SubjectPermission{Allow: subjects},
				Subscribe: &natsserver.SubjectPermission{Allow: []string{inboxes}},
			}
		}
		users = append(users, u)
	}
	return users
}

func (x *served) connect(user string) *nats.Conn {
	x.sim.t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(x.server), nats.UserInfo(user, "x"), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(0, 0), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	x.sim.must(err)
	x.sim.t.Cleanup(nc.Close)
	return nc
}

// change changes users' permissions while they are connected, like a reload of the configuration.
func (x *served) change(p people, inboxes string) {
	x.sim.t.Helper()
	next := x.options.Clone()
	next.Users = p.users(inboxes)
	x.sim.must(x.server.ReloadOptions(next))
}

// These permissions suffice for the whole status, and each is necessary; a missing one is named.
func TestStatusRights(t *testing.T) {
	for i := -1; i < len(statusRights); i++ {
		name, rights := "all that it needs", statusRights
		if i >= 0 {
			name, rights = "without "+statusRights[i], slices.Delete(slices.Clone(statusRights), i, i+1)
		}
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				all, few := s.withUsers(rights)
				admin, err := New(all, Topology{}, nil)
				s.must(err)
				s.bury(admin, 3, Rejected)
				_, err = admin.join(t.Context(), MemberConfig{TTL: 5 * time.Second})
				s.must(err)
				reader, err := New(few, Topology{}, nil)
				s.must(err)
				status, err := NewInspector(reader).Status(t.Context())
				if i < 0 {
					s.must(err)
					if len(status.Replicas) != 1 || status.DeadReasons[Rejected] != 3 {
						t.Errorf("got %+v", status)
					}
					return
				}
				subject := strings.ReplaceAll(statusRights[i], "*", "USERPILOT_IDENTIFY")
				if err == nil || !strings.Contains(err.Error(), "not permitted: allow this NATS user to publish to "+subject+";") || !errors.Is(err, jsapi.ErrNotPermitted) {
					t.Errorf("without a permission: %v", err)
				}
			})
		})
	}
}
