//go:build !noembed

package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// Quotas add up to all partitions, differ by one at most, and change only as far as a joining or
// leaving member requires.
func TestShare(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		partitions := rapid.IntRange(1, 257).Draw(t, "partitions")
		members := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{4}`), 1, 30, rapid.ID).Draw(t, "members")
		slices.Sort(members)
		of := func(members []string) map[string]int {
			shares := map[string]int{}
			for _, id := range members {
				shares[id] = quotaOf(partitions, members, id)
			}
			return shares
		}
		shares := of(members)
		sum := 0
		for _, n := range shares {
			sum += n
		}
		values := slices.Collect(maps.Values(shares))
		if sum != partitions || slices.Max(values)-slices.Min(values) > 1 {
			t.Fatalf("%d partitions: quotas are %v", partitions, shares)
		}
		if quotaOf(partitions, members, "stranger") != 0 {
			t.Fatal("an unknown member has a quota")
		}
		i := rapid.IntRange(0, len(members)-1).Draw(t, "leaver")
		left := slices.Delete(slices.Clone(members), i, i+1)
		if len(left) == 0 {
			return
		}
		// A member that stays gives up no partition when another one leaves.
		given := 0
		for id, n := range of(left) {
			given += max(0, shares[id]-n)
		}
		if given > 0 {
			t.Fatalf("%d partitions are released as one member leaves %v", given, shares)
		}
	})
}

// consumers lists the consumers on the partitions.
func (s *sim) consumers(q *pipeline) []string {
	s.T.Helper()
	stream, err := q.api.JetStream.Stream(s.T.Context(), q.topology.StreamName())
	s.Must(err)
	list := stream.ConsumerNames(s.T.Context())
	var names []string
	for name := range list.Name() {
		names = append(names, name)
	}
	s.Must(list.Err())
	return names
}

func (s *sim) backlog(q *pipeline) uint64 {
	return s.info(q, q.topology.StreamName()).State.Msgs
}

// claim creates a foreign consumer on the stream.
func (s *sim) claim(q *pipeline, name, subject string) {
	s.T.Helper()
	_, err := q.api.JetStream.CreateConsumer(s.T.Context(), q.topology.StreamName(), jetstream.ConsumerConfig{
		Durable: name, FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy,
	})
	s.Must(err)
}

// Replicas share the partitions, rebalance as members join and leave, and keep delivering events.
func TestFleetRebalances(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		var fleet []*replica
		q := s.queue(nil)
		balanced := func() bool {
			sum, least, most := 0, 1000, 0
			for _, r := range fleet {
				sum, least, most = sum+r.Held(), min(least, r.Held()), max(most, r.Held())
			}
			return sum == 17 && most-least <= 1
		}
		users := make([]string, 100)
		for i := range users {
			users[i] = fmt.Sprint("u", i)
		}
		for range 4 {
			fleet = append(fleet, s.replica(MemberConfig{}))
			s.publish(q, users...)
			s.Await(10*time.Second, "balanced", balanced)
		}
		for len(fleet) > 1 {
			s.publish(q, users...)
			s.Must(fleet[0].stop())
			if n := fleet[0].Held(); n != 0 {
				t.Errorf("%d partitions held after the stop", n)
			}
			fleet = fleet[1:]
			if d := s.Await(10*time.Second, "balanced", balanced); d > 2*time.Second {
				t.Errorf("taken over in peace after %v", d)
			}
		}
		s.Await(10*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
		s.Must(fleet[0].stop())
		if names := s.consumers(q); len(names) != 0 {
			t.Errorf("consumers are left: %v", names)
		}
		if s.Logged("level=WARN") || s.Logged("level=ERROR") {
			t.Error(s.Log())
		}
	})
}

// Within a partition events arrive in stream order, each once per claim.
func TestFleetOrder(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		r := s.replica(MemberConfig{})
		for i := range 300 {
			s.publish(q, fmt.Sprint("u", i%40))
		}
		s.Await(10*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
		s.Must(r.stop())
		last := map[string]uint64{}
		for i, seq := range r.received() {
			if by := r.gotBy[i]; seq <= last[by] {
				t.Errorf("event %d after %d in partition %s", seq, last[by], by)
			} else {
				last[by] = seq
			}
		}
		if n := len(r.received()); n != 300 {
			t.Errorf("%d events, want 300", n)
		}
	})
}

// The partitions of a dead replica are taken over once its key has expired.
func TestFleetTakeover(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		first := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return first.Held() == 17 })
		second := s.replica(MemberConfig{})
		s.Await(10*time.Second, "shared", func() bool { return first.Held()+second.Held() == 17 && second.Held() == 8 })
		first.kill()
		s.publish(q, "a", "b", "c", "d", "e", "f", "g", "h")
		if d := s.Await(20*time.Second, "taken over", func() bool { return second.Held() == 17 && s.backlog(q) == 0 }); d > 7*time.Second {
			t.Errorf("taken over after %v, want the TTL and 2s at most", d)
		}
	})
}

// A dead member's key that the server never removes blocks no partition forever.
func TestFleetStuckKey(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		dead := nuid.Next()
		_, err := s.bucket(q).PutString(t.Context(), jsapi.MemberKey+dead, `{"ttl":5000000000}`)
		s.Must(err)
		s.claim(q, consumerName(dead, "3", 1), q.topology.LiveSubject("3"))
		r := s.replica(MemberConfig{})
		time.Sleep(8 * time.Second)
		if n := r.Held(); n == 17 {
			t.Error("a living member's partition was taken")
		}
		s.Await(5*time.Second, "all taken", func() bool { return r.Held() == 17 })
	})
}

// Consumers that bear a member's id but are not among its claims are left over from a lost answer.
func TestFleetDeletesItsOrphans(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
		other := s.replica(MemberConfig{})
		s.Await(10*time.Second, "shared", func() bool { return r.Held()+other.Held() == 17 && other.Held() == 8 })
		names := s.consumers(r.pipeline)
		id, partition, _ := strings.Cut(names[0], "_")
		partition, _, _ = strings.Cut(partition, "_")
		stream, err := r.api.JetStream.Stream(t.Context(), r.topology.StreamName())
		s.Must(err)
		orphan := consumerName(id, partition, 999_999)
		config := jetstream.ConsumerConfig{Durable: orphan, FilterSubject: r.topology.LiveSubject(partition), AckPolicy: jetstream.AckExplicitPolicy}
		for name := names[0]; ; { // its holder re-claims it at once, and may be faster
			s.Must(stream.DeleteConsumer(t.Context(), name))
			if _, err := stream.CreateConsumer(t.Context(), config); err == nil {
				break
			}
			i := slices.IndexFunc(s.consumers(r.pipeline), func(name string) bool { return strings.Contains(name, "_"+partition+"_") })
			name = s.consumers(r.pipeline)[i]
		}
		s.Await(time.Minute, "free of the orphan", func() bool { return !slices.Contains(s.consumers(r.pipeline), orphan) })
		s.Await(time.Minute, "whole again", func() bool { return r.Held()+other.Held() == 17 && len(s.consumers(r.pipeline)) == 17 })
	})
}

// A consumer that is not a worker's is named, and not deleted.
func TestFleetForeignConsumer(t *testing.T) {
	for _, name := range []string{"mine", "my_other_consumer"} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.claim(q, name, q.topology.LiveSubject("3"))
				r := s.replica(MemberConfig{})
				s.Await(10*time.Second, "explained", func() bool { return s.Logged("is not a worker's: delete it") && s.Logged(name) })
				time.Sleep(time.Minute)
				if !slices.Contains(s.consumers(q), name) {
					t.Error("a foreign consumer was deleted")
				}
				if n := strings.Count(s.Log(), "is not a worker's"); n != 1 {
					t.Errorf("said %d times", n)
				}
				stream, err := q.api.JetStream.Stream(t.Context(), q.topology.StreamName())
				s.Must(err)
				s.Must(stream.DeleteConsumer(t.Context(), name))
				s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
			})
		})
	}
}

// A stream that differs ends Work: waiting cannot help.
func TestFleetMismatch(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(nil, queue.Topology{Partitions: 8})
		if err := q.Work(t.Context(), MemberConfig{}, &replica{}); err == nil || !strings.Contains(err.Error(), "partitions is 16, should be 8") {
			t.Errorf("got %v", err)
		}
	})
}

// Work waits for missing streams.
func TestFleetWaitsForTheStreams(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.Must(q.api.JetStream.DeleteStream(t.Context(), workName))
		s.Must(q.api.JetStream.DeleteStream(t.Context(), kvName))
		r := s.replica(MemberConfig{})
		time.Sleep(30 * time.Second)
		if n := strings.Count(s.Log(), "cannot work now"); n != 1 {
			t.Errorf("said %d times\n%s", n, s.Log())
		}
		_, err := q.Setup(t.Context(), false)
		s.Must(err)
		s.Await(5*time.Second, "at work", func() bool { return r.Held() == 17 })
	})
}

// After a server restart all partitions are re-claimed, and no event is lost.
func TestFleetServerRestart(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		a, b := s.replica(MemberConfig{}), s.replica(MemberConfig{})
		whole := func() bool { return a.Held()+b.Held() == 17 }
		for _, away := range []time.Duration{100 * time.Millisecond, 3 * time.Second, time.Minute} {
			s.Await(20*time.Second, "whole", whole)
			s.publish(q, "a", "b", "c")
			s.Stop()
			time.Sleep(away)
			s.Start()
			s.Await(20*time.Second, "connected", func() bool { return q.Connected() })
			s.publish(q, "d", "e", "f")
			s.Await(20*time.Second, "drained", func() bool { return whole() && s.backlog(q) == 0 })
		}
	})
}

// Members that start at the same time claim their quotas once: partitions do not move with each
// join.
func TestFleetStartsTogether(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		created, err := q.api.NATS.SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.CREATED." + workName + ".>")
		s.Must(err)
		var fleet []*replica
		for range 10 {
			fleet = append(fleet, s.replica(MemberConfig{}))
			time.Sleep(20 * time.Millisecond)
		}
		s.Await(5*time.Second, "balanced", func() bool {
			for _, r := range fleet {
				if n := r.Held(); n < 1 || n > 2 {
					return false
				}
			}
			return true
		})
		if n, _, err := created.Pending(); err != nil || n > 17+3 {
			t.Errorf("%d claims for 17 partitions, %v", n, err)
		}
	})
}

// A joining member gets its quota from the others, and no other partition moves.
func TestFleetMovesFew(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		a, b := s.replica(MemberConfig{}), s.replica(MemberConfig{})
		s.Await(5*time.Second, "shared", func() bool { return a.Held()+b.Held() == 17 && min(a.Held(), b.Held()) == 8 })
		before := s.consumers(q)
		c := s.replica(MemberConfig{})
		s.Await(5*time.Second, "shared", func() bool { return a.Held()+b.Held()+c.Held() == 17 && c.Held() >= 5 })
		after := s.consumers(q)
		stayed := 0
		for _, name := range before {
			if slices.Contains(after, name) {
				stayed++
			}
		}
		if moved := 17 - stayed; moved != c.Held() {
			t.Errorf("%d partitions moved for a share of %d", moved, c.Held())
		}
	})
}

// A crash loop that never settles does not keep the others from their quotas.
func TestFleetNeverSettles(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		ended := make(chan struct{})
		stop := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-stop:
					return
				case <-time.After(rebalanceDelay / 2):
					_, err := s.bucket(q).PutString(t.Context(), jsapi.MemberKey+nuid.Next(), `{"ttl":100000000}`)
					s.Must(err)
				}
			}
		}()
		r := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return r.Held() > 0 })
		close(stop)
		queuetest.Receive(s, "the end of it", ended)
	})
}

// Replicas know one another, and the partitions of each.
func TestReplicas(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		a := s.replica(MemberConfig{Host: "a", Version: "v1", Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}})
		b := s.replica(MemberConfig{Host: "b", Version: "v2", Rate: ratelimit.Rate{Calls: 60, Window: time.Minute}})
		s.Await(5*time.Second, "known", func() bool {
			known := a.Replicas()
			if len(known) != 2 {
				return false
			}
			for _, r := range known {
				want := a.Held()
				if r.Host == "b" {
					want = b.Held()
				}
				if want < 8 || len(r.Partitions) != want {
					return false
				}
			}
			return true
		})
		if low := LowestRate(b.Replicas()); low.Calls != 60 {
			t.Errorf("the lowest rate is %s", low)
		}
		s.Must(b.stop())
		s.Await(time.Second, "gone", func() bool { return len(a.Replicas()) == 1 })
	})
}

// A restarted server has lost the watches. Even so, no member may take another one, or itself, for
// dead.
func TestFleetHearsAfterServerRestart(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		a, b := s.replica(MemberConfig{TTL: 2 * time.Second}), s.replica(MemberConfig{TTL: 2 * time.Second})
		shared := func() bool { return a.Held()+b.Held() == 17 && min(a.Held(), b.Held()) == 8 }
		s.Await(20*time.Second, "shared", shared)
		s.Stop()
		s.Start()
		s.Await(5*time.Second, "shared again", shared)
		for range 60 {
			time.Sleep(500 * time.Millisecond)
			if !shared() {
				t.Fatalf("%d and %d are held", a.Held(), b.Held())
			}
		}
	})
}
