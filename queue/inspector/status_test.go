//go:build !noembed

package inspector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

func (s *sim) status(q *queue.Queue) *Status {
	s.T.Helper()
	status, err := New(q).Status(s.T.Context())
	s.Must(err)
	return status
}

// bury stores dead letters as a worker would.
func (s *sim) bury(q *queue.Queue, n int, reason deadletter.Reason) {
	s.T.Helper()
	for i := range n {
		_, err := q.API().JetStream.PublishMsg(s.T.Context(), &nats.Msg{
			Subject: deadletter.Subject(q.Topology(), reason, deadletter.Position{Stream: time.Now(), Sequence: uint64(i)}, ""),
			Header:  deadletter.Death{Reason: reason, User: "ann"}.Headers(deadletter.Event{Name: deadletter.Position{Stream: time.Now(), Sequence: uint64(i)}, Partition: "0"}, time.Now()),
		})
		s.Must(err)
	}
}

// A status is complete without a worker's help, and for any number of partitions.
func TestStatus(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(nil, queue.Topology{Partitions: 3}) // it is 16
		empty := s.status(q)
		if empty.Partitions != 16 || len(empty.Unclaimed) != 17 || len(empty.Replicas) != 0 || empty.Backlog != 0 || !empty.Rate.Unlimited() {
			t.Errorf("of nothing: %+v", empty)
		}
		if left, ok := empty.DrainTime(); left != 0 || !ok {
			t.Errorf("nothing drains in %v", left)
		}
		s.publish(q, "ann", "bob", "cleo")
		s.bury(q, 3, deadletter.Rejected)
		s.bury(q, 2, deadletter.Invalid)
		time.Sleep(90 * time.Second)
		if _, ok := s.status(q).DrainTime(); ok {
			t.Error("drains without workers")
		}
		r := s.replica(fleet.MemberConfig{Host: "pod-1", Version: "v1", Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}, Report: func() fleet.Report {
			return fleet.Report{Recent: fleet.Recent{Span: 30 * time.Second, Delivered: 40, Merged: 20, Dead: 5, Calls: 25}}
		}})
		s.Await(5*time.Second, "at work", func() bool { return r.Held() == 17 })
		s.Await(5*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
		s.Must(r.Cooldown().Start(time.Minute)(t.Context()))
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
		if want := map[deadletter.Reason]uint64{deadletter.Rejected: 3, deadletter.Invalid: 2}; !maps.Equal(got.DeadReasons, want) || got.DeadLetters != 5 {
			t.Errorf("the dead are %v", got.DeadReasons)
		}
		got.Backlog = 180
		if left, ok := got.DrainTime(); !ok || left != 2*time.Minute {
			t.Errorf("180 events at 90 a minute drain in %v", left)
		}
		s.Must(r.stop())
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
		s.bury(q, letters, deadletter.Rejected)
		stream, err := q.API().JetStream.Stream(t.Context(), deadName)
		s.Must(err)
		var want []string
		for seq := uint64(1); seq <= letters; seq++ {
			if seq%7 == 0 || seq > letters-2 {
				s.Must(stream.DeleteMsg(t.Context(), seq))
			} else {
				want = append(want, fmt.Sprint(seq))
			}
		}
		var got []string
		for m, err := range q.API().Scan(t.Context(), deadName, jsapi.ScanRange{From: 1}) {
			s.Must(err)
			got = append(got, m.Header.Get("Nats-Sequence"))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d messages, want %d", len(got), len(want))
		}
		for _, err := range q.API().Scan(t.Context(), deadName, jsapi.ScanRange{From: letters + 1}) {
			t.Errorf("there is a message past the end: %v", err)
		}
		for range q.API().Scan(t.Context(), deadName, jsapi.ScanRange{From: 1}) {
			break
		}
	})
}

// An error without an answer names the subject.
func TestStatusWithoutAnswers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q := s.queue(l)
		l.Silent.Store(true)
		_, err := New(q).Status(t.Context())
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

// These permissions suffice for the whole status, and each is necessary; a missing one is named.
func TestStatusRights(t *testing.T) {
	for i := -1; i < len(statusRights); i++ {
		name, rights := "all that it needs", statusRights
		if i >= 0 {
			name, rights = "without "+statusRights[i], slices.Delete(slices.Clone(statusRights), i, i+1)
		}
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				all, few := s.WithUsers(rights)
				admin, err := queue.New(all, queue.Topology{}, nil)
				s.Must(err)
				s.bury(admin, 3, deadletter.Rejected)
				r := &replica{Queue: admin, Fleet: fleet.New(admin)}
				working, stop := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- r.Work(working, fleet.MemberConfig{}, r) }()
				defer func() { stop(); s.Must(s.worked(done)) }()
				s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
				reader, err := queue.New(few, queue.Topology{}, nil)
				s.Must(err)
				status, err := New(reader).Status(t.Context())
				if i < 0 {
					s.Must(err)
					if len(status.Replicas) != 1 || status.DeadReasons[deadletter.Rejected] != 3 {
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
