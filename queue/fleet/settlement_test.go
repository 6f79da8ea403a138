//go:build !noembed

package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// server plays the server: requests wait until the test answers them.
type server struct {
	settler
	t *testing.T
	s *sim

	mu     sync.Mutex
	asked  []*nats.Msg
	failed []error
	done   []string
}

func (s *sim) playServer(newSettler func(*nats.Conn, func(error)) (settler, error)) *server {
	s.T.Helper()
	q := s.queue(nil)
	x := &server{t: s.T, s: s}
	_, err := q.api.NATS.Subscribe("play.>", func(m *nats.Msg) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.asked = append(x.asked, m)
	})
	s.Must(err)
	x.settler, err = newSettler(q.api.NATS, func(err error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.failed = append(x.failed, err)
	})
	s.Must(err)
	return x
}

func (s *sim) playAcker() *server {
	return s.playServer(func(nc *nats.Conn, fail func(error)) (settler, error) { return newAcker(nc, fail) })
}

func (s *sim) playDeleter() *server {
	return s.playServer(func(nc *nats.Conn, fail func(error)) (settler, error) {
		d, err := newDeleter(s.T.Context(), nc, "", fail)
		d.subject = "play.delete"
		return d, err
	})
}

// begin settles events with these names; their sequences are their positions in the alphabet.
func (x *server) begin(names string) {
	var ds []Delivery
	for _, name := range names {
		ds = append(ds, Delivery{Sequence: uint64(name), acks: &acks{before: "play.ack."}})
	}
	x.settle(ds, func(int) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.done = append(x.done, names)
	})
	synctest.Wait()
}

// name is the event of a request.
func name(m *nats.Msg) string {
	if seq := 0; m.Subject == "play.delete" {
		_, _ = fmt.Sscanf(string(m.Data), `{"seq":%d`, &seq)
		return string(rune(seq))
	}
	event, _, _ := strings.Cut(strings.TrimPrefix(m.Subject, "play.ack."), ".")
	seq, _ := strconv.Atoi(event)
	return string(rune(seq))
}

// answer answers the oldest request that expects it.
func (x *server) answer(body string) {
	x.t.Helper()
	x.mu.Lock()
	for len(x.asked) > 0 && x.asked[0].Reply == "" {
		x.asked = x.asked[1:]
	}
	if len(x.asked) == 0 {
		x.mu.Unlock()
		x.t.Fatal("there is no request")
	}
	m := x.asked[0]
	x.asked = x.asked[1:]
	x.mu.Unlock()
	x.s.Must(m.Respond([]byte(body)))
	synctest.Wait()
}

func (x *server) expect(asked string, done ...string) {
	x.t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	var all strings.Builder
	for _, m := range x.asked {
		all.WriteString(name(m))
	}
	if names := all.String(); names != asked || !slices.Equal(x.done, done) {
		x.t.Errorf("requested %q, done %q; want %q and %q", names, x.done, asked, done)
	}
}

const (
	success = `{"success":true}`
	again   = `{"error":{"err_code":10008,"description":"busy"}}`
)

// Events leave oldest first, one by one, and done is called only when all are gone.
func TestDeleterOrder(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		x := s.playDeleter()
		x.begin("ac")
		x.begin("b")
		x.expect("ab")
		x.answer(success)
		x.expect("bc")
		x.answer(success)
		x.expect("c", "b")
		x.answer(success)
		x.expect("", "b", "ac")
		if len(x.failed) > 0 || x.overdue(time.Now().Add(time.Hour)) {
			t.Errorf("failed: %v", x.failed)
		}
	})
}

// Settlements that start while a confirmation is pending wait for it, and then go out together.
func TestAckerBatches(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		x := s.playAcker()
		x.begin("a")
		x.begin("bd")
		x.begin("c")
		x.expect("a")
		x.answer("")
		x.expect("bdc", "a")
		x.begin("e")
		x.expect("bdc", "a")
		x.answer("")
		x.expect("e", "a", "bd", "c")
		x.answer("")
		x.expect("", "a", "bd", "c", "e")
		if len(x.failed) > 0 || x.overdue(time.Now().Add(time.Hour)) {
			t.Errorf("failed: %v", x.failed)
		}
	})
}

// A request that the server asks to repeat is repeated after a pause, but not forever.
func TestDeleterAgain(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		x := s.playDeleter()
		x.begin("ab")
		patience := func() {
			x.answer(again)
			x.expect("")
			time.Sleep(jsapi.RetryDelay)
			synctest.Wait()
		}
		for range 3 {
			patience()
			x.expect("a")
		}
		x.answer(success)
		patience()
		x.answer(success)
		x.expect("", "ab")
		x.begin("c")
		time.Sleep(settleTimeout)
		x.answer(again)
		if len(x.failed) != 1 {
			t.Errorf("retried forever: %v", x.failed)
		}
	})
}

// While a stream has no leader, each server with a replica of it answers each request.
func TestDeleterManyAnswers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		x := s.playDeleter()
		x.begin("a")
		for range 5 {
			s.Must(x.asked[0].Respond([]byte(again)))
			x.answer(again)
			time.Sleep(jsapi.RetryDelay)
			synctest.Wait()
			x.expect("a")
		}
		x.answer(again)
		x.close()
		time.Sleep(jsapi.RetryDelay)
		synctest.Wait()
		x.expect("")
	})
}

// A duplicate or unexpected confirmation has no effect, and neither has one after the end.
func TestDeleterStrayAnswers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		x := s.playDeleter()
		x.begin("ab")
		first := x.asked[0]
		for range 3 {
			s.Must(first.Respond([]byte(success)))
		}
		inbox := x.settler.(*deleter).inbox
		nc := x.settler.(*deleter).nc
		s.Must(nc.Publish(inbox+".nonsense", []byte(success)))
		s.Must(nc.Publish(inbox+".77.1", []byte("no")))
		synctest.Wait()
		x.expect("ab")
		x.close()
		s.Must(x.asked[1].Respond([]byte(success)))
		synctest.Wait()
		x.expect("ab")
		if len(x.failed) != 0 {
			t.Errorf("failed: %v", x.failed)
		}
	})
}

// A missing confirmation is noticed; each confirmation restarts the timeout.
func TestSettleOverdue(t *testing.T) {
	for name, play := range map[string]func(*sim) *server{"ack": (*sim).playAcker, "deletion": (*sim).playDeleter} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				x := play(s)
				for _, event := range []string{"a", "b"} {
					x.begin(event)
					time.Sleep(settleTimeout)
					if x.overdue(time.Now()) {
						t.Error("overdue at its time")
					}
					x.answer(success)
				}
				x.begin("c")
				time.Sleep(settleTimeout + 1)
				if !x.overdue(time.Now()) {
					t.Error("not overdue")
				}
			})
		})
	}
}

// deliveries claims the whole stream with one consumer and fetches its events.
func (s *sim) deliveries(q *pipeline) (jetstream.Consumer, []Delivery) {
	s.T.Helper()
	consumer, err := q.api.JetStream.CreateConsumer(s.T.Context(), q.topology.StreamName(), jetstream.ConsumerConfig{
		Durable: "all", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Hour, MaxAckPending: -1,
	})
	s.Must(err)
	return consumer, s.fetch(consumer)
}

// fetch fetches up to a thousand events of the consumer.
func (s *sim) fetch(consumer jetstream.Consumer) []Delivery {
	s.T.Helper()
	batch, err := consumer.FetchNoWait(1000)
	s.Must(err)
	var ds []Delivery
	for m := range batch.Messages() {
		at, err := jsapi.ParseReply(m.Reply())
		s.Must(err)
		ds = append(ds, Delivery{Sequence: at.Stream, acks: acksOf(m.Reply()), number: at.Consumer})
	}
	s.Must(batch.Error())
	return ds
}

// Both settlers, on a real server: when done is called, the events are gone.
func TestSettlers(t *testing.T) {
	for name, replicas := range map[string]int{"ack": 1, "deletion": 3} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				q.topology.Replicas = replicas // chooses the settler; the stream still has one replica
				s.publish(q, "ann", "bob", "ann", "bob", "cyd")
				consumer, ds := s.deliveries(q)
				a := &assignment{q: q.Fleet, active: t.Context(), release: func() {}, revoked: make(chan struct{}), feeds: make([]*feed, 1)}
				x, err := a.newSettler()
				s.Must(err)
				defer func() {
					if err := a.err(); err != nil {
						t.Error(err)
					}
				}()
				for _, batch := range [][]Delivery{ds[:3], ds[3:], ds[:1], ds[4:]} { // includes events that are gone already
					done := false
					x.settle(batch, func(gone int) { done = gone == len(batch) })
					synctest.Wait()
					if !done {
						t.Fatal("not settled")
					}
				}
				info, err := consumer.Info(t.Context())
				s.Must(err)
				if n := s.backlog(q); n != 0 || info.NumAckPending != 0 {
					t.Errorf("%d events are left, %d pending", n, info.NumAckPending)
				}
			})
		})
	}
}

// A call that is in flight when its claim ends is settled, unless the stream may have been made anew: then
// the sequence is another event's.
func TestSettlementAfterTheClaim(t *testing.T) {
	for name, c := range map[string]struct {
		ended  error
		anew   bool
		remain uint64
	}{
		"the consumer's leader changed": {errors.New("409 Leadership Change"), false, 0},
		"heartbeats were late":          {jetstream.ErrNoHeartbeat, false, 0},
		"the stream is made anew":       {jsapi.ErrConsumerGone, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				q.topology.Replicas = 3 // chooses the settler; the stream still has one replica
				s.publish(q, "ann")
				_, ds := s.deliveries(q)
				j, err := openJournal(t.Context(), s.bucket(q), "3", time.Now(), 1)
				s.Must(err)
				a := &assignment{q: q.Fleet, active: t.Context(), release: func() {}, revoked: make(chan struct{}), feeds: make([]*feed, 1)}
				a.settler, err = a.newSettler()
				s.Must(err)
				if c.anew {
					s.Must(q.api.JetStream.DeleteStream(t.Context(), workName))
					_, err = s.queue(nil).Setup(t.Context(), false)
					s.Must(err)
					s.publish(q, "bob")
				}
				a.revoke(because(CausePull, c.ended))
				(&Claim{assignment: a, journal: j}).Settle("ann", ds, func(int) {})
				time.Sleep(time.Second)
				if n := s.backlog(q); n != c.remain {
					t.Errorf("%d events are left, want %d", n, c.remain)
				}
			})
		})
	}
}

// An event without a certain removal is not settled.
func TestSettlersFail(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.publish(q, "ann")
		_, ds := s.deliveries(q)
		failed := make(chan error, 1)
		fail := func(err error) { failed <- err }
		done := func(int) { t.Error("settled") }

		other, err := newDeleter(t.Context(), q.api.NATS, "$JS.API.STREAM.MSG.DELETE.OTHER", fail)
		s.Must(err)
		other.settle(ds, done)
		if err := queuetest.Receive(s, "failed", failed); !strings.Contains(err.Error(), "stream not found") {
			t.Errorf("got %v", err)
		}
		s.Must(q.api.JetStream.DeleteConsumer(t.Context(), q.topology.StreamName(), "all"))
		ack, err := newAcker(q.api.NATS, fail)
		s.Must(err)
		ack.settle(ds, done)
		if err := queuetest.Receive(s, "failed", failed); !strings.Contains(err.Error(), "no consumer took the acknowledgement") {
			t.Errorf("got %v", err)
		}
	})
}

// A confirmation covers only earlier acknowledgements on the same connection. Here the first of a
// batch are lost with a connection, and occasionally the last ones reach the server on the next.
func TestAckerAcrossReconnect(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q := s.queue(l)
		s.publish(q, slices.Repeat([]string{"ann"}, 500)...)
		_, ds := s.deliveries(q)
		for range 60 { // the scheduler decides whether the sender or the end of the connection is faster
			failed, done := false, false
			x, err := newAcker(q.api.NATS, func(error) { failed = true })
			s.Must(err)
			synctest.Wait()
			l.Breaks.Store(true)
			x.settle(ds, func(int) { done = true })
			time.Sleep(time.Minute)
			x.close()
			if n := s.backlog(q); done && n > 0 {
				t.Fatalf("settled, but %d of %d events remain", n, len(ds))
			}
			if !done && !failed && !x.overdue(time.Now()) {
				t.Error("the error is not noticed")
			}
		}
	})
}

func TestDeletionAnswers(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		success: "",
		`{"error":{"err_code":10043,"description":"sequence 7 not found"}}`: "",
		`{"error":{"err_code":10057,"description":"no message found"}}`:     "",
		`{"error":{"err_code":10057,"description":"not permitted"}}`:        "not permitted",
		again: jsapi.ErrTryAgain.Error(),
		`{"error":{"err_code":10059,"description":"stream not found"}}`: "stream not found",
		`{"success":false}`: "the answer to a deletion says neither success nor error",
		`{}`:                "the answer to a deletion says neither success nor error",
		``:                  "read the answer to a deletion",
		`secret`:            "read the answer to a deletion",
	} {
		err := deleted([]byte(body))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v", body, err)
		}
	}
}

// A released claim does not wait until a thousand events are deleted one by one: the deletion in
// flight ends, and done gets the number of events that are certainly gone.
func TestDeleterIsCutShort(t *testing.T) {
	for name, test := range map[string]struct {
		answers []string // before the claim is released
		last    string   // after it
		want    int
	}{
		"at once":                 {nil, success, 1},
		"in the middle":           {[]string{success, success}, success, 3},
		"while it is asked again": {[]string{success}, again, 1},
		"at the end":              {[]string{success, success, success}, success, 4},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				active, release := context.WithCancel(t.Context())
				x := s.playServer(func(nc *nats.Conn, fail func(error)) (settler, error) {
					d, err := newDeleter(active, nc, "", fail)
					d.subject = "play.delete"
					return d, err
				})
				var ds []Delivery
				for _, name := range "abcd" {
					ds = append(ds, Delivery{Sequence: uint64(name)})
				}
				var gone []int
				x.settle(ds, func(n int) { gone = append(gone, n) })
				synctest.Wait()
				for _, answer := range test.answers {
					x.answer(answer)
				}
				release()
				synctest.Wait()
				if len(gone) > 0 {
					t.Errorf("%v are gone before the server says so", gone)
				}
				x.answer(test.last)
				time.Sleep(time.Minute)
				x.expect("")
				if !slices.Equal(gone, []int{test.want}) || len(x.failed) > 0 {
					t.Errorf("gone %v, want %d; failed: %v", gone, test.want, x.failed)
				}
			})
		})
	}
}

// The rest of an interrupted settlement stays in the journal: the next owner must send it together.
func TestCutSettlementStaysInTheJournal(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		for gone, reach := range []uint64{3, 3, 0} {
			j, err := openJournal(t.Context(), s.bucket(q), fmt.Sprint(gone), time.Now(), 1)
			s.Must(err)
			c := &Claim{assignment: &assignment{settler: cutter(gone)}, journal: j}
			s.Must(j.begin(t.Context(), "ann", Extent{Live: 3}))
			settled := -1
			c.Settle("ann", []Delivery{{Sequence: 2}, {Sequence: 3}}, func(n int) { settled = n })
			if got := c.ResendThrough("ann").Live; got != reach || settled != gone {
				t.Errorf("%d of 2 are gone, done got %d: ResendThrough is %d, want %d", gone, settled, got, reach)
			}
		}
	})
}

// cutter is a [settler] that stops after a number of events.
type cutter int

func (x cutter) settle(_ []Delivery, done func(int)) { done(int(x)) }
func (cutter) overdue(time.Time) bool                { return false }
func (cutter) close()                                {}
