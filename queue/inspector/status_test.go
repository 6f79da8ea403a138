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
		if drain := empty.Drain(); drain != (Drain{Basis: DrainEmpty}) {
			t.Errorf("nothing: %+v", drain)
		}
		s.publish(q, "ann", "bob", "cleo")
		s.bury(q, 3, deadletter.Rejected)
		s.bury(q, 2, deadletter.Invalid)
		time.Sleep(90 * time.Second)
		if drain := s.status(q).Drain(); drain != (Drain{Basis: DrainNoReplica}) {
			t.Errorf("without workers: %+v", drain)
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
		if used := got.RateUsed(); used != 25 || got.Window() != 30*time.Second {
			t.Errorf("%v calls in %v, want 25 in 30s", used, got.Window())
		}
		if want := map[deadletter.Reason]uint64{deadletter.Rejected: 3, deadletter.Invalid: 2}; !maps.Equal(got.DeadReasons, want) || got.DeadLetters != 5 {
			t.Errorf("the dead are %v", got.DeadReasons)
		}
		got.Live.Events, got.QuietUntil = 180, time.Time{}
		if drain := got.Drain(); drain != (Drain{DrainEstimated, 2 * time.Minute}) {
			t.Errorf("180 events at 90 a minute: %+v", drain)
		}
		s.Must(r.stop())
		if n := len(s.status(q).Replicas); n != 0 {
			t.Errorf("%d replicas after it has left", n)
		}
	})
}

// Whatever is missing is named, and what is left is shown. Only if nothing is left it is an error.
func TestStatusWithoutStreams(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.replica(fleet.MemberConfig{Host: "pod-1"})
		s.Await(10*time.Second, "owned", func() bool { return len(s.status(q).Unclaimed) == 0 })
		s.bury(q, 2, deadletter.Invalid)
		missing := func(drop string, want ...string) *Status {
			t.Helper()
			s.Must(q.API().JetStream.DeleteStream(t.Context(), drop))
			got := s.status(q)
			if !slices.Equal(got.Missing, want) || got.Time.IsZero() {
				t.Errorf("without %v: %+v", want, got)
			}
			return got
		}
		if got := missing(workName, workName); len(got.Replicas) != 1 || len(got.Unclaimed) != 0 || got.DeadLetters != 2 || got.DeadReasons[deadletter.Invalid] != 2 || got.NoBucket {
			t.Errorf("without the work stream: %+v", got)
		}
		if got := missing("KV_userpilot_identify_versions", workName, "KV_userpilot_identify_versions"); len(got.Replicas) != 1 {
			t.Errorf("without the version records: %+v", got)
		}
		if _, err := q.Setup(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		s.Must(q.API().JetStream.DeleteStream(t.Context(), workName))
		if got := missing(deadName, workName, deadName); len(got.Replicas) != 1 || got.DeadLetters != 0 {
			t.Errorf("without two: %+v", got)
		}
		s.Must(q.API().JetStream.DeleteStream(t.Context(), kvName))
		if _, err := New(q).Status(t.Context()); !errors.Is(err, queue.ErrNoStream) {
			t.Errorf("without all: %v", err)
		}
		if _, err := q.Setup(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		s.publish(q, "ann")
		if got := missing(kvName, kvName); !got.NoBucket || got.Backlog != 1 || got.Drain() != (Drain{Basis: DrainUnknown}) {
			t.Errorf("without the bucket: %+v", got)
		}
	})
}

// Consumers that somebody has paused are found when an event waits.
func TestStatusPaused(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		r := s.replica(fleet.MemberConfig{})
		s.Await(10*time.Second, "owned", func() bool { return r.Held() == 17 && len(s.consumers(q)) == 1 })
		stream, err := q.API().JetStream.Stream(t.Context(), workName)
		s.Must(err)
		_, err = stream.PauseConsumer(t.Context(), s.consumers(q)[0], time.Now().Add(time.Hour))
		s.Must(err)
		s.publish(q, "ann")
		time.Sleep(fleet.PausedAfter / 2)
		if got := s.status(q).Paused; len(got) != 0 {
			t.Errorf("asked too soon: %v", got)
		}
		time.Sleep(fleet.PausedAfter)
		if got := s.status(q).Paused; len(got) != 17 {
			t.Errorf("paused are %v", got)
		}
	})
}

// Without the permissions to find paused consumers and all missing streams, everything else is shown.
func TestStatusWithFewRights(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all, few := s.WithUsers([]string{
			"$JS.API.STREAM.INFO." + workName, "$JS.API.STREAM.INFO." + deadName, "$JS.API.STREAM.INFO." + kvName, "$JS.API.DIRECT.GET.*",
		})
		q, err := queue.New(all, queue.Topology{}, nil)
		s.Must(err)
		s.publish(q, "ann")
		time.Sleep(2 * fleet.PausedAfter)
		q, err = queue.New(few, queue.Topology{}, nil)
		s.Must(err)
		if got := s.status(q); got.Backlog != 1 || len(got.Unclaimed) != 17 {
			t.Errorf("got %+v", got)
		}
	})
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		usage queue.Usage
		share float64
		full  bool
	}{
		"no limit":         {queue.Usage{Messages: 5, Bytes: 500}, 0, false},
		"empty":            {queue.Usage{MaxBytes: 100, MaxMessages: 10}, 0, false},
		"half":             {queue.Usage{Messages: 5, MaxMessages: 10, Bytes: 100, MaxBytes: 1000}, 0.5, false},
		"the nearer limit": {queue.Usage{Messages: 1, MaxMessages: 10, Bytes: 900, MaxBytes: 10_000}, 0.1, false},
		"no more messages": {queue.Usage{Messages: 10, MaxMessages: 10}, 1, true},
		"no more bytes":    {queue.Usage{Messages: 9, Bytes: 900, MaxBytes: 990}, 900.0 / 990, true},
	} {
		if test.usage.Share() != test.share || test.usage.Full() != test.full {
			t.Errorf("%s: %v, full %v", name, test.usage.Share(), test.usage.Full())
		}
	}
}

// The time to drain is told only if it is known, and otherwise why it is not.
func TestDrain(t *testing.T) {
	t.Parallel()
	now := time.Now()
	limit := ratelimit.Rate{Calls: 600, Window: time.Minute}
	of := func(span time.Duration, delivered, calls uint64) fleet.Replica {
		return fleet.Replica{Rate: limit, Report: fleet.Report{Recent: fleet.Recent{Span: span, Delivered: delivered, Calls: calls}}}
	}
	held, down := of(time.Minute, 600, 600), of(time.Minute, 600, 600)
	stalled := of(time.Minute, 600, 600)
	held.Hold, down.OutageSince, stalled.Stall = "unauthorized", now, "dead_letter"
	young := of(10*time.Second, 0, 1)
	young.Hold = "unauthorized"
	status := func(age time.Duration, replicas ...fleet.Replica) Status {
		return Status{Time: now, Counts: queue.Counts{Live: queue.Waiting{Events: 1200, Oldest: now.Add(-age)}}, Replicas: replicas, Rate: fleet.LowestRate(replicas)}
	}
	unlimited := status(time.Hour, of(2*time.Second, 9, 9))
	unlimited.Rate = ratelimit.Rate{}
	unreached := func(span time.Duration) fleet.Replica { // calls that do not come to be count as none
		r := of(span, 0, 0)
		r.Failing = 1
		return r
	}
	quiet := status(time.Hour, of(time.Minute, 600, 600))
	quiet.QuietUntil = now.Add(time.Second)
	paused := status(time.Hour, of(time.Minute, 600, 600))
	paused.Paused = []string{"3"}
	for name, test := range map[string]struct {
		status Status
		want   Drain
	}{
		"nobody":                    {status(time.Hour), Drain{Basis: DrainNoReplica}},
		"a minute":                  {status(time.Hour, of(time.Minute, 600, 600)), Drain{DrainEstimated, 2 * time.Minute}},
		"somewhat more":             {status(time.Hour, of(75*time.Second, 750, 750)), Drain{DrainEstimated, 2 * time.Minute}},
		"half a minute":             {status(time.Hour, of(30*time.Second, 300, 300)), Drain{DrainEstimated, 2 * time.Minute}},
		"one has just joined":       {status(time.Hour, of(time.Minute, 590, 590), of(2*time.Second, 10, 10)), Drain{DrainEstimated, 2 * time.Minute}},
		"two seconds":               {status(time.Hour, of(2*time.Second, 40, 40)), Drain{DrainAtMost, 2 * time.Minute}},
		"two seconds, no limit":     {unlimited, Drain{Basis: DrainUnknown}},
		"nothing to do till now":    {status(22*time.Millisecond, of(time.Minute, 0, 0)), Drain{DrainAtMost, 2 * time.Minute}},
		"the first call has failed": {status(22*time.Millisecond, of(time.Minute, 0, 1)), Drain{DrainAtMost, 2 * time.Minute}},
		"all calls fail":            {status(time.Hour, of(time.Minute, 0, 600)), Drain{Basis: DrainNever}},
		"a minute without a way":    {status(time.Hour, unreached(time.Minute)), Drain{Basis: DrainNever}},
		"seconds without a way":     {status(10*time.Second, unreached(10*time.Second)), Drain{Basis: DrainUnknown}},
		"another one succeeds":      {status(10*time.Second, unreached(10*time.Second), of(10*time.Second, 9, 9)), Drain{DrainAtMost, 2 * time.Minute}},
		"a hold":                    {status(time.Hour, held, held), Drain{Basis: DrainHold}},
		"a hold and one that works": {status(time.Hour, held, of(time.Minute, 0, 0)), Drain{DrainEstimated, 2 * time.Minute}},
		"a hold of a young fleet":   {status(10*time.Second, young, of(10*time.Second, 9, 9)), Drain{Basis: DrainUnknown}},
		"an outage":                 {status(time.Hour, down), Drain{Basis: DrainOutage}},
		"a hold and an outage":      {status(time.Hour, down, held), Drain{Basis: DrainOutage}},
		"a standstill":              {status(time.Hour, stalled, held), Drain{Basis: DrainStalled}},
		"a paused consumer":         {paused, Drain{Basis: DrainUnknown}},
		"a cooldown":                {quiet, Drain{Basis: DrainCooldown}},
	} {
		if got := test.status.Drain(); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

// Live events come first, and backfill takes what they leave of the limit.
func TestDrainByClass(t *testing.T) {
	t.Parallel()
	now := time.Now()
	limit := ratelimit.Rate{Calls: 600, Window: time.Minute}
	fleetOf := func(n fleet.Recent) Status {
		r := fleet.Replica{Rate: limit, Report: fleet.Report{Recent: n}}
		return Status{Time: now, Replicas: []fleet.Replica{r}, Rate: limit}
	}
	waiting := func(events uint64, age time.Duration) queue.Waiting {
		return queue.Waiting{Events: events, Oldest: now.Add(-age)}
	}
	const minute = time.Minute
	unlimited := fleetOf(fleet.Recent{Span: 5 * time.Second, Delivered: 9, Calls: 9})
	unlimited.Rate, unlimited.Replicas[0].Rate = ratelimit.Rate{}, ratelimit.Rate{}
	unreached := fleetOf(fleet.Recent{Span: 10 * time.Second})
	unreached.Replicas[0].Failing = 1
	down := fleetOf(fleet.Recent{Span: minute, Delivered: 600, Calls: 600, Backfill: 480})
	down.Replicas[0].OutageSince = now
	for name, test := range map[string]struct {
		status          Status
		live, backfill  queue.Waiting
		first, later    Drain
		firstIsTheWhole bool
	}{
		"no backfill": {fleetOf(fleet.Recent{Span: minute, Delivered: 600, Calls: 600, Backfill: 480}), waiting(1200, minute), queue.Waiting{},
			Drain{DrainEstimated, 2 * minute}, Drain{Basis: DrainEmpty}, true},
		"backfill alone": {fleetOf(fleet.Recent{Span: minute, Delivered: 500, Dead: 50, Superseded: 50, Calls: 550, Backfill: 600}), queue.Waiting{}, waiting(6000, time.Hour),
			Drain{Basis: DrainEmpty}, Drain{DrainEstimated, 10 * minute}, false},
		"beside a steady load": {fleetOf(fleet.Recent{Span: minute, Delivered: 600, Calls: 600, Backfill: 480}), waiting(0, 0), waiting(4800, time.Hour),
			Drain{Basis: DrainEmpty}, Drain{DrainEstimated, 10 * minute}, false},
		"behind a live backlog": {fleetOf(fleet.Recent{Span: minute, Delivered: 600, Calls: 600, Backfill: 480}), waiting(1200, 2*minute), waiting(4800, time.Hour),
			Drain{DrainEstimated, 2 * minute}, Drain{DrainEstimated, 12 * minute}, false},
		"just published, beside a live load": {fleetOf(fleet.Recent{Span: minute, Delivered: 310, Calls: 310, Backfill: 10}), waiting(0, 0), waiting(3000, 2*time.Second),
			Drain{Basis: DrainEmpty}, Drain{DrainAtMost, 10 * minute}, false},
		"live events are merged": {fleetOf(fleet.Recent{Span: minute, Delivered: 6000, Merged: 5700, Calls: 300}), waiting(0, 0), waiting(3000, 2*time.Second),
			Drain{Basis: DrainEmpty}, Drain{DrainAtMost, 10 * minute}, false},
		"live events use the whole limit": {fleetOf(fleet.Recent{Span: minute, Delivered: 598, Calls: 598}), waiting(598, 5*minute), waiting(4800, time.Hour),
			Drain{DrainEstimated, minute}, Drain{Basis: DrainBehind}, false},
		"nothing is left to set": {fleetOf(fleet.Recent{Span: minute, Superseded: 600, Backfill: 300}), waiting(1200, minute), waiting(600, minute),
			Drain{DrainEstimated, 2 * minute}, Drain{DrainEstimated, 4 * minute}, false},
		"every call fails": {fleetOf(fleet.Recent{Span: minute, Calls: 600, Failed: 600}), queue.Waiting{}, waiting(4800, time.Hour),
			Drain{Basis: DrainEmpty}, Drain{Basis: DrainNever}, false},
		"no call gets through": {unreached, waiting(1, 10*time.Second), waiting(4800, 10*time.Second),
			Drain{Basis: DrainUnknown}, Drain{Basis: DrainUnknown}, false},
		"too little was seen, and no limit": {unlimited, queue.Waiting{}, waiting(4800, time.Second),
			Drain{Basis: DrainEmpty}, Drain{Basis: DrainUnknown}, false},
		"an outage": {down, waiting(1, 0), waiting(4800, time.Hour), Drain{Basis: DrainOutage}, Drain{Basis: DrainOutage}, false},
	} {
		s := test.status
		s.Live, s.Backfill, s.Backlog = test.live, test.backfill, test.live.Events+test.backfill.Events
		whole := test.later
		if test.firstIsTheWhole {
			whole = test.first
		}
		if first, later, all := s.LiveDrain(), s.BackfillDrain(), s.Drain(); first != test.first || later != test.later || all != whole {
			t.Errorf("%s: live %+v, backfill %+v, all %+v; want %+v, %+v, %+v", name, first, later, all, test.first, test.later, whole)
		}
	}
}

// A status reads no event: if both classes wait, the replicas tell how old the oldest of each is.
func TestStatusByClass(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all, few := s.WithUsers(statusRights)
		admin, err := queue.New(all, queue.Topology{}, nil)
		s.Must(err)
		reader, err := queue.New(few, queue.Topology{}, nil)
		s.Must(err)
		backfill := func() {
			_, err = admin.API().JetStream.Publish(t.Context(), admin.Topology().BackfillSubject("ann"), nil)
			s.Must(err)
		}
		backfill()
		time.Sleep(10 * time.Second)
		if got := s.status(reader); got.Live != (queue.Waiting{}) || got.Backfill.Events != 1 || got.Time.Sub(got.Backfill.Oldest).Round(time.Second) != 10*time.Second {
			t.Errorf("backfill alone: %+v", got.Counts)
		}
		s.publish(admin, "ann", "bob")
		if got := s.status(reader); got.Live != (queue.Waiting{Events: 2}) || got.Backfill != (queue.Waiting{Events: 1}) || got.Backlog != 3 {
			t.Errorf("both, and nobody knows the ages: %+v", got.Counts)
		}
		got := &Status{Counts: queue.Counts{At: time.Now(), Live: queue.Waiting{Events: 2}, Backfill: queue.Waiting{Events: 1}}}
		got.addOldest([]fleet.Replica{{}, {Report: fleet.Report{OldestLive: time.Second, OldestBackfill: time.Minute}}, {Report: fleet.Report{OldestLive: 2 * time.Second}}})
		if live, backfill := got.At.Sub(got.Live.Oldest), got.At.Sub(got.Backfill.Oldest); live != 2*time.Second || backfill != time.Minute {
			t.Errorf("the oldest are %v and %v old", live, backfill)
		}
		alone := &Status{Counts: queue.Counts{At: time.Now(), Live: queue.Waiting{Events: 2, Oldest: time.Now()}}}
		if alone.addOldest([]fleet.Replica{{Report: fleet.Report{OldestLive: time.Hour}}}); time.Since(alone.Live.Oldest) > time.Minute {
			t.Error("a report overrides the stream's own word")
		}
	})
}

// Nobody knows the limit of a fleet without replicas.
func TestRateAllowed(t *testing.T) {
	t.Parallel()
	if _, ok := (&Status{}).RateAllowed(); ok {
		t.Error("it is known without replicas")
	}
	if allowed, ok := (&Status{Replicas: []fleet.Replica{{}}}).RateAllowed(); allowed != 0 || !ok {
		t.Errorf("of one without a limit: %v, %v", allowed, ok)
	}
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
