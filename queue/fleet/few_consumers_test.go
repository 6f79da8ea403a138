//go:build !noembed

package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// fewConsumers publishes for a second replica's whole life, and checks that nothing is lost, and
// that the first one has all partitions within seconds after the second has left.
func (s *sim) fewConsumers(q *pipeline, replicaOn func() *replica, whileBoth func()) (first, second *replica) {
	s.T.Helper()
	users := make([]string, 40)
	for i := range users {
		users[i] = fmt.Sprint("u", i)
	}
	first = replicaOn()
	s.Await(5*time.Second, "alone", func() bool { return first.Held() == 17 })
	second = replicaOn()
	for range 20 {
		s.publish(q, users...)
		time.Sleep(time.Second)
		whileBoth()
	}
	s.Must(second.stop())
	last := s.publish(q, users...)
	if d := s.Await(30*time.Second, "alone again", func() bool { return first.Held() == 17 }); d > 5*time.Second {
		s.T.Errorf("all partitions only after %v", d)
	}
	s.Await(10*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
	got := slices.Concat(first.received(), second.received())
	slices.Sort(got)
	if got = slices.Compact(got); len(got) != int(last) {
		s.T.Errorf("%d events arrived, want %d", len(got), last)
	}
	return first, second
}

// Where a stream may have only few consumers, one replica works all partitions, and others stand by.
func TestFleetFewConsumers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		topology := queue.Topology{Name: "few"}
		q := s.queueOf(nil, topology)
		config := q.topology.WorkStream(q.api.NATS.MaxPayload())
		config.MaxConsumers = 4
		_, err := q.api.JetStream.CreateStream(t.Context(), config)
		s.Must(err)
		_, err = q.Setup(t.Context(), false)
		s.Must(err)
		first, second := s.fewConsumers(q, func() *replica { return s.replicaOf(topology, MemberConfig{}) }, func() {
			if n := s.backlog(q); n > 0 {
				t.Errorf("%d events wait", n)
			}
		})
		if len(second.received()) > 0 || len(first.received()) == 0 {
			t.Error("the one that came later has worked")
		}
		// When the one that works leaves, the other takes over.
		second = s.replicaOf(topology, MemberConfig{})
		s.Await(5*time.Second, "standing by", func() bool { return len(second.Replicas()) == 2 && second.StandsBy() })
		s.Must(first.stop())
		if d := s.Await(30*time.Second, "taken over", func() bool { return second.Held() == 17 && !second.StandsBy() }); d > 5*time.Second {
			t.Errorf("taken over after %v", d)
		}
		if n := strings.Count(s.Warnings(), "level=WARN"); n > 2 || !s.Logged("standing by while another replica") {
			t.Errorf("%d warnings:\n%s", n, s.Warnings())
		}
	})
}

// limitConsumers bounds the consumers of the account, and returns a function that connects its users: all
// may do everything, few what a worker does. known is whether few may read the limit.
func (s *sim) limitConsumers(n int, known bool) func(user string) *pipeline {
	s.T.Helper()
	var allowed []string
	for _, p := range Permissions(queue.Topology{}) {
		if !p.Subscribe && (known || p.Subject != "$JS.API.INFO") {
			allowed = append(allowed, p.Subject)
		}
	}
	auth := s.ServeUsers(queuetest.Users{"all": {">"}, "few": allowed})
	auth.LimitConsumers(n)
	return func(user string) *pipeline {
		q, err := queue.New(auth.Connect(user), queue.Topology{}, s.Logger())
		s.Must(err)
		return open(q)
	}
}

// The limit of an account is known only to users who may read it. Whether or not, the first replica
// works again as soon as the second has left.
func TestFleetFewConsumersOfTheAccount(t *testing.T) {
	for name, may := range map[string]bool{"known": true, "not known": false} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				open := s.limitConsumers(4, may)
				q := open("all")
				first, second := s.fewConsumers(q, func() *replica { return s.replicaOn(open("few"), MemberConfig{}) }, func() {
					if n := s.backlog(q); n > 0 && may {
						t.Errorf("%d events wait", n)
					}
				})
				if may && (len(first.received()) == 0 || len(second.received()) > 0) {
					t.Error("the one that came later has worked")
				}
				if n := strings.Count(s.Warnings(), "level=WARN"); n > 2 {
					t.Errorf("%d warnings:\n%s", n, s.Warnings())
				}
			})
		})
	}
}

// Where a server refused a second consumer for the backfill, and allows it later, live events get one of
// their own, without a restart.
func TestSplitOnceThereIsRoom(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		auth := s.ServeUsers(queuetest.Users{"all": {">"}})
		auth.LimitConsumers(1)
		queueOf, err := queue.New(auth.Connect("all"), queue.Topology{}, s.Logger())
		s.Must(err)
		q := open(queueOf)
		for range SplitAt {
			_, err := q.api.JetStream.PublishAsync(q.topology.BackfillSubject("ann"), []byte("{}"))
			s.Must(err)
		}
		<-q.api.JetStream.PublishAsyncComplete()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		claims := make(full, 1000)
		go func() { done <- q.Work(ctx, MemberConfig{}, claims) }()
		defer func() { cancel(); s.Must(s.worked(done)) }()
		if c := queuetest.Receive(s, "a claim", claims); c.IsSplit() {
			t.Fatal("there is room for two")
		}
		auth.LimitConsumers(10)
		s.Await(2*splitRetry, "split", func() bool {
			select {
			case c := <-claims:
				return c.IsSplit()
			default:
				return false
			}
		})
	})
}

// Where the account's limit may not be read, the second consumers of one replica's partitions do not keep
// another replica from claiming its own.
func TestSplitLeavesRoom(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		open := s.limitConsumers(20, false)
		q := open("all")
		for i := range 20 * SplitAt {
			_, err := q.api.JetStream.PublishAsync(q.topology.BackfillSubject(fmt.Sprint("u", i)), []byte("{}"))
			s.Must(err)
		}
		<-q.api.JetStream.PublishAsyncComplete()
		var replicas []*replica
		for range 2 {
			r := s.replicaOn(open("few"), MemberConfig{})
			r.mu.Lock()
			r.onDeliver = func([]byte) { time.Sleep(time.Minute) } // the backfill lasts
			r.mu.Unlock()
			replicas = append(replicas, r)
		}
		s.Await(10*time.Minute, "all claimed", func() bool {
			return replicas[0].Held()+replicas[1].Held() == 17 && s.backlog(q) > 10*SplitAt
		})
	})
}
