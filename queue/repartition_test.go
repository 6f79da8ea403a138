//go:build !noembed

package queue

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// order notes in which order each user's events were handed over, whichever replica did.
type order struct {
	mu   sync.Mutex
	seen map[string][]string
}

func (o *order) note(body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	user, n, _ := strings.Cut(string(body), "#")
	o.seen[user] = append(o.seen[user], n)
}

// Partitions change under a fleet and under publishers that never rest: nothing is refused, lost or
// out of order.
func TestRepartition(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		old := s.replica(MemberConfig{Report: busyReport})
		o := &order{seen: map[string][]string{}}
		old.onDeliver = o.note
		s.await(5*time.Second, "at work", func() bool { return old.Held() == 17 })

		const users, rounds = 60, 40
		published := make(chan error, 1)
		go func() { published <- publishInTurn(t, q, users, rounds) }()
		time.Sleep(time.Second)
		other := s.queueOf(nil, Topology{Partitions: 5})
		change, err := other.Repartition(t.Context(), time.Minute)
		s.must(err)
		if change == nil || change.Have != "16" || change.Want != "5" {
			t.Errorf("the change is %v", change)
		}
		s.await(5*time.Second, "noticed", func() bool { return old.Held() == 0 })
		if err := old.stop(); err == nil || !strings.Contains(err.Error(), "use --partitions 5") {
			t.Errorf("the old worker ends with %v", err)
		}
		r := s.replicaOf(Topology{Partitions: 5}, MemberConfig{})
		r.onDeliver = o.note
		s.must(receive(s, "all published", published))
		s.await(20*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
		for i := range users {
			user := fmt.Sprintf("u%d", i)
			got := slices.Compact(o.seen[user]) // a repeat is allowed
			if len(got) != rounds || !slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(fmt.Sprintf("%3s", a), fmt.Sprintf("%3s", b)) }) {
				t.Errorf("%s got %v", user, got)
			}
		}
		if other.Topology().Partitions != partitionsOf(s.info(q, workName).Config) || isPaused(s.info(q, workName).Config) {
			t.Error("the stream is not as it should be")
		}
	})
}

func busyReport() Report {
	return Report{Recent: Recent{Span: time.Minute, Delivered: 60_000, Calls: 60_000}}
}

// publishInTurn publishes each user's events one after another, and each until it is taken.
func publishInTurn(t *testing.T, q *Queue, users, rounds int) error {
	p := q.NewPublisher(PublisherConfig{})
	for n := range rounds {
		for i := range users {
			user := fmt.Sprintf("u%d", i)
			subject := q.topology.Subject(user)
			id := fmt.Sprintf("%s-%d", user, n)
			for {
				_, err := q.js.Publish(t.Context(), subject, fmt.Appendf(nil, "%s#%d", user, n), jetstream.WithMsgID(id))
				if err == nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return p.Close(t.Context())
}

// What does not drain is left as it was, open for publishers, and the error says why.
func TestRepartitionRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		config *MemberConfig // of a replica that takes nothing; nil is none
		want   string
	}{
		"nobody works": {nil, "no worker is running"},
		"a hold":       {&MemberConfig{Report: func() Report { return Report{Hold: "unauthorized"} }}, "on hold"},
		"an outage":    {&MemberConfig{Report: func() Report { return Report{OutageSince: time.Now()} }}, "seems to be down"},
		"slow": {&MemberConfig{Report: func() Report { return Report{Recent: Recent{Span: time.Minute, Delivered: 1}} }},
			"at the present rate they take 2m0s"},
		"nothing moves": {&MemberConfig{}, "nothing is being delivered"},
		// It seems that all will be gone in a moment, and then it is not.
		"a false promise": {&MemberConfig{Report: busyReport}, "at the present rate they take 0s"},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.publish(q, "ann", "bob")
				if test.config != nil {
					m, err := s.queue(nil).join(t.Context(), *test.config.orDefaults(t))
					s.must(err)
					go func() { _ = m.keep(t.Context()) }()
				}
				_, err := s.queueOf(nil, Topology{Partitions: 8}).Repartition(t.Context(), 5*time.Second)
				if err == nil || !strings.Contains(err.Error(), "2 events wait") || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v", err)
				}
				if c := s.info(q, workName).Config; partitionsOf(c) != 16 || isPaused(c) {
					t.Errorf("the stream is %+v", c)
				}
				s.publish(q, "cleo")
			})
		})
	}
}

// An event that was under way when publishing was closed is stored a moment after the stream was
// seen empty. It is waited for, too.
func TestRepartitionSeesStragglers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		const stays = 4 * drainLook
		stream, err := q.js.Stream(t.Context(), workName)
		s.must(err)
		defer time.AfterFunc(drainLook/2, func() {
			_, err := q.js.Publish(t.Context(), q.topology.pausedSubject(), nil)
			s.must(err)
		}).Stop()
		defer time.AfterFunc(stays, func() { s.must(stream.Purge(t.Context())) }).Stop()
		begun := time.Now()
		change, err := s.queueOf(nil, Topology{Partitions: 8}).Repartition(t.Context(), time.Minute)
		s.must(err)
		if took := time.Since(begun); took < stays || change == nil {
			t.Errorf("after %v, with an event in an old partition, the change is %v", took, change)
		}
	})
}

func (m MemberConfig) orDefaults(t *testing.T) *MemberConfig {
	m, err := m.withDefaults(Topology{Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	return &m
}

// What an interrupted change has left closed is opened by the next one, and workers work meanwhile.
func TestRepartitionInterrupted(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.publish(q, "ann")
		s.must(q.update(t.Context(), q.closed(s.info(q, workName).Config)))
		if _, err := q.js.Publish(t.Context(), q.topology.Subject("bob"), nil, jetstream.WithRetryAttempts(0)); err == nil {
			t.Error("it is not closed")
		}
		if _, err := q.Setup(t.Context(), false); err != nil {
			t.Errorf("a worker does not start: %v", err)
		}
		r := s.replica(MemberConfig{})
		s.await(10*time.Second, "drained", func() bool { return r.Held() == 17 && s.backlog(q) == 0 })
		status, err := q.Status(t.Context())
		s.must(err)
		if !status.Paused {
			t.Error("the status does not say that it is closed")
		}
		if _, err := q.Setup(t.Context(), true); err != nil {
			t.Error(err)
		}
		s.publish(q, "bob")
	})
}

// Of two who change the partitions at once at most one has its way, and the other leaves all as that
// one made it, whenever it begins.
func TestRepartitionTwoAtOnce(t *testing.T) {
	for later := -2 * time.Second; later < 400*time.Millisecond; later += 200 * time.Millisecond {
		t.Run(later.String(), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				first, far := s.queueOf(nil, Topology{Partitions: 32}), s.far(300*time.Millisecond, Topology{Partitions: 8})
				second := make(chan error, 1)
				go func() {
					time.Sleep(3*time.Second + later)
					_, err := far.Repartition(t.Context(), time.Minute)
					second <- err
				}()
				time.Sleep(3 * time.Second)
				_, errFirst := first.Repartition(t.Context(), time.Minute)
				if errFirst == nil { // these wait in the new partitions
					for i := range 5 {
						_, _ = first.js.Publish(t.Context(), first.topology.Subject(fmt.Sprint(i)), nil) // it may be closed again
					}
				}
				errSecond := <-second
				want := 16
				switch {
				case errFirst == nil:
					want = 32
				case errSecond == nil:
					want = 8
				}
				c := s.info(first, workName).Config
				if errFirst == nil && errSecond == nil || partitionsOf(c) != want || isPaused(c) {
					t.Errorf("%d partitions, closed: %t, after %v and %v", partitionsOf(c), isPaused(c), errFirst, errSecond)
				}
			})
		})
	}
}

// Who finds it closed by another, and opens it, ends that one's change.
func TestRepartitionOpenedMeanwhile(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, far := s.queue(nil), s.far(300*time.Millisecond, Topology{Partitions: 8})
		failed := make(chan error, 1)
		go func() {
			_, err := far.Repartition(t.Context(), time.Minute)
			failed <- err
		}()
		s.await(time.Minute, "closed", func() bool { return isPaused(s.info(q, workName).Config) })
		if change, err := q.Repartition(t.Context(), 0); change != nil || err != nil {
			t.Errorf("got %v, %v", change, err)
		}
		s.publish(q, "ann")
		if err := <-failed; err == nil {
			t.Error("it was changed with an event in it")
		}
		if c := s.info(q, workName).Config; partitionsOf(c) != 16 || isPaused(c) {
			t.Errorf("%d partitions, closed: %t", partitionsOf(c), isPaused(c))
		}
	})
}
