//go:build !noembed

package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

var made = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func (s *sim) journal(kv jetstream.KeyValue, created time.Time) *journal {
	s.T.Helper()
	j, err := openJournal(s.T.Context(), kv, "3", created, s.oldest)
	s.Must(err)
	return j
}

func TestJournalRemembers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		kv := s.bucket(s.queue(nil))
		reaches := func(step string, created time.Time, ann, bob uint64) {
			t.Helper()
			j := s.journal(kv, created)
			if a, b := j.resendThrough("ann").Live, j.resendThrough("bob").Live; a != ann || b != bob {
				t.Errorf("%s: the successor waits for %d and %d, want %d and %d", step, a, b, ann, bob)
			}
		}
		reaches("nothing yet", made, 0, 0)
		j := s.journal(kv, made)
		s.Must(j.begin(t.Context(), "ann", Extent{Live: 5}))
		reaches("one", made, 5, 0)
		s.Must(j.begin(t.Context(), "bob", Extent{Live: 7}))
		reaches("two", made, 5, 7)
		s.Must(j.begin(t.Context(), "ann", Extent{Live: 4}))
		reaches("fewer, after a refusal", made, 4, 7)
		s.Must(j.begin(t.Context(), "ann", Extent{Live: 9}))
		reaches("more", made, 9, 7)
		j.settled("ann", Extent{Live: 8})
		if j.resendThrough("ann").Live != 9 {
			t.Error("settled up to 8, and 9 is forgotten")
		}
		j.settled("ann", Extent{Live: 9})
		if j.resendThrough("ann").Live != 0 {
			t.Error("not forgotten after its settlement")
		}
		s.Must(j.begin(t.Context(), "bob", Extent{Live: 11}))
		reaches("the next write forgets", made, 0, 11)
		reaches("a stream made anew", made.Add(1), 0, 0)
		s.oldest = 11
		reaches("the event is the oldest", made, 0, 11)
		s.oldest = 12
		reaches("the event is gone", made, 0, 0)
	})
}

// The bucket contains no user id.
func TestJournalHashesUsers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		kv := s.bucket(s.queue(nil))
		s.Must(s.journal(kv, made).begin(t.Context(), "ann@example.com", Extent{Live: 5}))
		entry, err := kv.Get(t.Context(), "merge.3")
		s.Must(err)
		if strings.Contains(string(entry.Value()), "ann") {
			t.Errorf("the record is %s", entry.Value())
		}
	})
}

// Calls that start together share writes, and a call that is already recorded needs none.
func TestJournalGroupsWrites(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(&queuetest.Line{Delay: func() time.Duration { return 5 * time.Millisecond }})
		written := func() uint64 { return s.info(q, "KV_userpilot_identify").State.LastSeq }
		j := s.journal(s.bucket(q), made)
		before := written()
		var wg sync.WaitGroup
		ctx := s.Soon(time.Minute)
		for i := range 64 {
			wg.Go(func() {
				if err := j.begin(ctx, fmt.Sprint(i), Extent{Live: 5}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := written() - before; n > 2 {
			t.Errorf("%d writes for 64 calls that began together", n)
		}
		before = written()
		s.Must(j.begin(t.Context(), "7", Extent{Live: 5}))
		s.Must(j.begin(t.Context(), "7", Extent{Live: 5}))
		if n := written() - before; n != 0 {
			t.Errorf("%d writes for what is known", n)
		}
	})
}

// A holder that has lost its claim cannot write.
func TestJournalOfTheLastHolder(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		kv := s.bucket(s.queue(nil))
		for last := range uint64(3) { // on an empty key, and on an existing one
			old, next := s.journal(kv, made), s.journal(kv, made)
			s.Must(next.begin(t.Context(), "ann", Extent{Live: last + 1}))
			if err := old.begin(t.Context(), "bob", Extent{Live: 12}); !jsapi.IsWrongRevision(err) {
				t.Errorf("got %v", err)
			}
			if j := s.journal(kv, made); j.resendThrough("bob").Live != 0 || j.resendThrough("ann").Live != last+1 {
				t.Error("the old holder has written")
			}
		}
	})
}

func TestJournalDamaged(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		kv := s.bucket(s.queue(nil))
		_, err := kv.PutString(t.Context(), "merge.3", `{"stream":"secret`)
		s.Must(err)
		j := s.journal(kv, made)
		if j.damage == nil || !strings.Contains(j.damage.Error(), "merge.3") || strings.Contains(j.damage.Error(), "secret") {
			t.Errorf("got %v", j.damage)
		}
		s.Must(j.begin(t.Context(), "ann", Extent{Live: 5}))
		if again := s.journal(kv, made); again.damage != nil || again.resendThrough("ann").Live != 5 {
			t.Errorf("after a new write: %v", again.damage)
		}
	})
}

// A user who may only publish can make the server write its acknowledgement into any key, through
// the reply subject. Such keys block no partition, and make no member.
func TestAcknowledgementsAsRecords(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		plant := func(key string) {
			s.Must(q.api.NATS.PublishRequest(q.topology.Subject("ann"), q.api.KeySubject(key), []byte(`{"user_id":"ann"}`)))
		}
		for _, p := range q.topology.PartitionNames() {
			plant("merge." + p)
		}
		for range 5 {
			plant(jsapi.MemberKey + nuid.Next())
		}
		for i := range 16 {
			plant(fmt.Sprint("ledger.", i))
		}
		s.Await(time.Minute, "planted", func() bool {
			return s.info(q, "KV_"+q.topology.Bucket()).State.Msgs >= uint64(len(q.topology.PartitionNames())+5+16)
		})
		r := s.replica(MemberConfig{})
		s.Await(15*time.Second, "all claimed", func() bool { return r.Held() == len(q.topology.PartitionNames()) })
		if n := strings.Count(s.Log(), "record of merged calls in the key merge."); n != len(q.topology.PartitionNames()) {
			t.Errorf("logged %d damaged records\n%s", n, s.Log())
		}
		s.Must(r.stop())
	})
}

// A caller that waits for another one's write can be cancelled.
func TestJournalBeginEndsWithContext(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q := s.queue(l)
		j := s.journal(s.bucket(q), made)
		l.Silent.Store(true)
		var wg sync.WaitGroup
		soon := s.Soon(time.Minute)
		wg.Go(func() {
			if err := j.begin(soon, "ann", Extent{Live: 5}); err == nil {
				t.Error("recorded without an answer")
			}
		})
		why := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
		defer cancel()
		begun := time.Now()
		time.Sleep(time.Millisecond)
		if err := j.begin(ctx, "bob", Extent{Live: 5}); !errors.Is(err, why) || time.Since(begun) > 2*time.Second {
			t.Errorf("got %v after %v", err, time.Since(begun))
		}
		wg.Wait()
	})
}
