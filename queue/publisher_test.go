//go:build !noembed

package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// bubble runs test in fake time, with a server in its own directory.
func bubble(t *testing.T, test func(t *testing.T, nc *nats.Conn)) {
	t.Parallel()
	ats.Register() // the server's clock ticker must not belong to the bubble
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		test(t, connect(t, boot(t, dir)))
	})
}

// outage runs test in fake time, with a server that its clients reach under an address until it is lost.
func outage(t *testing.T, test func(t *testing.T, address *moving, lose func())) {
	ats.Register()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var address moving
		s := boot(t, dir)
		address.to(s)
		test(t, &address, func() {
			address.to(nil)
			s.Shutdown()
		})
	})
}

func boot(t *testing.T, dir string) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(embedded.Config{Dir: dir, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func connect(t *testing.T, s nats.InProcessConnProvider, options ...nats.Option) *nats.Conn {
	t.Helper()
	options = append(options, nats.InProcessServer(s), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	nc, err := nats.Connect("", options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func newQueue(t *testing.T, nc *nats.Conn) *queue.Queue {
	t.Helper()
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func setUp(t *testing.T, nc *nats.Conn) *queue.Queue {
	t.Helper()
	q := newQueue(t, nc)
	if _, err := q.Setup(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	return q
}

func newPublisher(t *testing.T, q *queue.Queue, c queue.PublisherConfig) *queue.Publisher {
	t.Helper()
	p := q.NewPublisher(c)
	t.Cleanup(func() { _ = p.Close(context.Background()) })
	return p
}

// stored lists the bodies in the work stream, oldest first, by subject.
func stored(t *testing.T, nc *nats.Conn) (subjects, bodies []string) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), queue.Topology{}.StreamName())
	if err != nil {
		t.Fatal(err)
	}
	for seq := range stream.CachedInfo().State.LastSeq {
		m, err := stream.GetMsg(t.Context(), seq+1)
		if err != nil {
			t.Fatal(err)
		}
		subjects, bodies = append(subjects, m.Subject), append(bodies, string(m.Data))
	}
	return subjects, bodies
}

func TestPublishStoresTheBodyAsItIs(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		p := newPublisher(t, setUp(t, nc), queue.PublisherConfig{})
		body := `{"user_id": "ann", "metadata": {"seats": 1.50}}`
		receipt, err := p.Publish(t.Context(), []byte(body))
		if err != nil || receipt != (queue.Receipt{Sequence: 1}) {
			t.Fatalf("got %+v, %v", receipt, err)
		}
		subjects, bodies := stored(t, nc)
		if len(bodies) != 1 || bodies[0] != body || !strings.HasPrefix(subjects[0], "userpilot.identify.") {
			t.Fatalf("stored %q on %q", bodies, subjects)
		}
	})
}

// Without an id the server has nothing to remember; every other event has one.
func TestPublishWithoutMessageID(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		p := newPublisher(t, setUp(t, nc), queue.PublisherConfig{})
		seen, err := nc.SubscribeSync("userpilot.identify.*")
		if err != nil {
			t.Fatal(err)
		}
		for _, bare := range []bool{false, true, false} {
			var options []queue.PublishOption
			if bare {
				options = append(options, queue.WithoutMessageID())
			}
			if receipt, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`), options...); err != nil || receipt.Duplicate {
				t.Fatalf("got %+v, %v", receipt, err)
			}
			m, err := seen.NextMsgWithContext(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if id := m.Header.Get(nats.MsgIdHdr); (id == "") != bare {
				t.Errorf("without an id %t: it is %q", bare, id)
			}
		}
	})
}

func TestPublishRefusesWhatNoWorkerCouldDeliver(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		p := newPublisher(t, setUp(t, nc), queue.PublisherConfig{})
		_, err := p.Publish(t.Context(), []byte(`{"user_id": 7}`))
		if invalid, ok := errors.AsType[*userpilot.InvalidError](err); !ok || invalid.Field != "user_id" {
			t.Fatalf("got %v", err)
		}
		if _, bodies := stored(t, nc); len(bodies) != 0 {
			t.Fatalf("stored %q", bodies)
		}
	})
}

// A strict publisher also refuses what is surely a mistake; another one leaves that to Userpilot.
func TestStrictPublisher(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		q := setUp(t, nc)
		body := []byte(`{"user_id":"undefined"}`)
		if _, err := newPublisher(t, q, queue.PublisherConfig{}).Publish(t.Context(), body); err != nil {
			t.Fatal(err)
		}
		strict := newPublisher(t, q, queue.PublisherConfig{Strict: true})
		_, err := strict.Publish(t.Context(), body)
		if invalid, ok := errors.AsType[*userpilot.InvalidError](err); !ok || invalid.Field != "user_id" {
			t.Fatalf("got %v", err)
		}
		if _, err := strict.Publish(t.Context(), []byte(`{"user_id":"ann"}`)); err != nil {
			t.Fatal(err)
		}
		if _, bodies := stored(t, nc); len(bodies) != 2 {
			t.Fatalf("stored %q", bodies)
		}
	})
}

func TestAMessageIDIsStoredOnce(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		p := newPublisher(t, setUp(t, nc), queue.PublisherConfig{})
		body := []byte(`{"user_id":"ann"}`)
		for i, want := range []queue.Receipt{{Sequence: 1}, {Sequence: 1, Duplicate: true}} {
			if got, err := p.Publish(t.Context(), body, queue.WithMessageID("one")); err != nil || got != want {
				t.Fatalf("publication %d: got %+v, %v", i, got, err)
			}
		}
		if got, err := p.Publish(t.Context(), body); err != nil || got != (queue.Receipt{Sequence: 2}) {
			t.Fatalf("without an id: got %+v, %v", got, err)
		}
	})
}

// An application's headers reach the worker, but give the server no instructions.
func TestHeaders(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		q := setUp(t, nc)
		p := newPublisher(t, q, queue.PublisherConfig{})
		body := []byte(`{"user_id":"ann"}`)
		for _, name := range []string{"Nats-TTL", "Nats-Msg-Id", "", "a b", "a:b", "a\r\nNats-Rollup"} {
			if _, err := p.Publish(t.Context(), body, queue.WithHeader(map[string][]string{name: {"x"}})); err == nil {
				t.Errorf("%q is published", name)
			}
		}
		if _, err := p.Publish(t.Context(), body, queue.WithHeader(map[string][]string{"Source": {"crm"}})); err != nil {
			t.Fatal(err)
		}
		m, err := q.API().ReadSequence(t.Context(), q.Topology().StreamName(), 1)
		if err != nil || !bytes.Contains(m.Header, []byte("Source: crm\r\n")) {
			t.Errorf("stored %+v, %v", m, err)
		}
	})
}

func TestMessageIDsAreOneLine(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		p := newPublisher(t, setUp(t, nc), queue.PublisherConfig{})
		for _, id := range []string{"two\nlines", strings.Repeat("x", 513), " ", " one", "one\t"} {
			if _, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`), queue.WithMessageID(id)); err == nil {
				t.Errorf("an id of %d bytes was accepted", len(id))
			}
		}
	})
}

func TestAnEndlessUserIDGoesToThePlainPartition(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		p := newPublisher(t, setUp(t, nc), queue.PublisherConfig{})
		for _, length := range []int{1024, 1025, 100_000} {
			body := fmt.Appendf(nil, `{"user_id":"%s"}`, strings.Repeat("x", length))
			if _, err := p.Publish(t.Context(), body); err != nil {
				t.Fatalf("%d bytes: %v", length, err)
			}
		}
		plain := queue.Topology{}.PlainSubject()
		subjects, _ := stored(t, nc)
		if subjects[0] == plain || subjects[1] != plain || subjects[2] != plain {
			t.Fatalf("stored on %q", subjects)
		}
	})
}

func TestWithoutAStream(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		began := time.Now()
		p := newPublisher(t, newQueue(t, nc), queue.PublisherConfig{})
		_, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`))
		if !errors.Is(err, queue.ErrNoStream) {
			t.Fatalf("got %v", err)
		}
		if waited := time.Since(began); waited > time.Second {
			t.Fatalf("the error came after %v", waited)
		}
	})
}

func TestAFullStream(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		q := setUp(t, nc)
		limitStream(t, nc, 1)
		p := newPublisher(t, q, queue.PublisherConfig{})
		if _, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`)); !errors.Is(err, jsapi.ErrStreamFull) {
			t.Fatalf("got %v", err)
		}
	})
}

func limitStream(t *testing.T, nc *nats.Conn, messages int64) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), queue.Topology{}.StreamName())
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.MaxMsgs = messages
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}

func TestNoAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		q := setUp(t, nc)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		c := q.Topology().WorkStream(1 << 20)
		c.Subjects = []string{"elsewhere.*"}
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		noReply(t, nc)
		began := time.Now()
		p := newPublisher(t, q, queue.PublisherConfig{Retry: 20 * time.Second})
		_, err = p.Publish(t.Context(), []byte(`{"user_id":"ann"}`))
		if waited := time.Since(began); !errors.Is(err, queue.ErrNoAnswer) || errors.Is(err, queue.ErrUnreachable) || waited < 20*time.Second || waited > 21*time.Second {
			t.Fatalf("got %v after %v", err, waited)
		}
	})
}

// Where another client listens on the subject, the server reports no "no responders".
func TestSilenceWithoutAStream(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		noReply(t, nc)
		p := newPublisher(t, newQueue(t, nc), queue.PublisherConfig{})
		for _, user := range []string{"ann", "bob"} {
			began := time.Now()
			_, err := p.Publish(t.Context(), fmt.Appendf(nil, `{"user_id":%q}`, user))
			if waited := time.Since(began); !errors.Is(err, queue.ErrNoStream) || waited > 2*time.Second {
				t.Errorf("got %v after %v", err, waited)
			}
		}
	})
}

func TestPublishWhileDisconnected(t *testing.T) {
	for name, test := range map[string]struct {
		config queue.PublisherConfig
		after  time.Duration
		sent   bool
	}{
		"retries":    {queue.PublisherConfig{Retry: 5 * time.Second}, 5 * time.Second, true},
		"fails fast": {queue.PublisherConfig{Retry: 5 * time.Second, FailFast: true}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			outage(t, func(t *testing.T, address *moving, lose func()) {
				p := newPublisher(t, setUp(t, connect(t, address)), test.config)
				if _, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`)); err != nil {
					t.Fatal(err)
				}
				lose()
				synctest.Wait()
				began := time.Now()
				_, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`))
				if !errors.Is(err, queue.ErrUnreachable) || errors.Is(err, queue.ErrNoAnswer) != test.sent {
					t.Errorf("got %v", err)
				}
				if waited := time.Since(began); waited < test.after || waited > test.after+time.Second {
					t.Errorf("it took %v", waited)
				}
			})
		})
	}
}

// Once its connection is closed for good, a publisher waits for no answers.
func TestClosedConnection(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		standIn(t, nc)
		noReply(t, nc)
		p := newPublisher(t, newQueue(t, nc), queue.PublisherConfig{})
		began := time.Now()
		var results []*queue.Result
		for range 2 { // the second waits for the first
			r, err := p.PublishAsync(t.Context(), []byte(`{"user_id":"ann"}`))
			if err != nil {
				t.Fatal(err)
			}
			results = append(results, r)
		}
		nc.Close()
		if err := p.Close(t.Context()); err != nil || time.Since(began) > time.Second {
			t.Errorf("closed after %v: %v", time.Since(began), err)
		}
		for _, r := range results {
			if _, err := r.Wait(t.Context()); !errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, queue.ErrUnreachable) {
				t.Errorf("got %v", err)
			}
		}
	})
}

// A publisher that fails fast does so also while its window is full of events from before.
func TestFailFastWithAFullWindow(t *testing.T) {
	t.Parallel()
	outage(t, func(t *testing.T, address *moving, lose func()) {
		nc := connect(t, address)
		standIn(t, nc)
		noReply(t, nc)
		p := newPublisher(t, newQueue(t, nc), queue.PublisherConfig{Window: 1, FailFast: true})
		began := time.Now()
		if _, err := p.PublishAsync(t.Context(), []byte(`{"user_id":"ann"}`)); err != nil {
			t.Fatal(err)
		}
		var waiting sync.WaitGroup
		refused := func(user string) {
			_, err := p.PublishAsync(t.Context(), fmt.Appendf(nil, `{"user_id":%q}`, user))
			if waited := time.Since(began); !errors.Is(err, queue.ErrUnreachable) || errors.Is(err, queue.ErrNoAnswer) || waited > time.Second {
				t.Errorf("%s: got %v after %v", user, err, waited)
			}
		}
		waiting.Go(func() { refused("bob") })
		synctest.Wait()
		lose()
		waiting.Wait()
		refused("cleo")
	})
}

// silence receives all events and answers none.
func noReply(t *testing.T, nc *nats.Conn) *nats.Subscription {
	t.Helper()
	sub, err := nc.SubscribeSync(queue.Topology{}.PlainSubject() + ".*")
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

func TestTheWindowHoldsPublishersBack(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		noReply(t, nc)
		p := newPublisher(t, newQueue(t, nc), queue.PublisherConfig{Window: 2})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for i := range 2 {
			if _, err := p.PublishAsync(ctx, fmt.Appendf(nil, `{"user_id":"%d"}`, i)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.PublishAsync(ctx, []byte(`{"user_id":"ann"}`)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestCloseWaitsAndTakesNoMore(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		p := setUp(t, nc).NewPublisher(queue.PublisherConfig{})
		var results []*queue.Result
		for range 20 { // one user: each waits for the previous one
			r, err := p.PublishAsync(t.Context(), []byte(`{"user_id":"ann"}`))
			if err != nil {
				t.Fatal(err)
			}
			results = append(results, r)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			select {
			case <-r.Done():
			default:
				t.Fatalf("event %d was still on its way", i)
			}
			if receipt, err := r.Wait(t.Context()); err != nil || receipt.Sequence != uint64(i+1) {
				t.Fatalf("event %d: %+v, %v", i, receipt, err)
			}
		}
		if _, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`)); !errors.Is(err, queue.ErrPublisherClosed) {
			t.Fatalf("got %v", err)
		}
	})
}

// A publisher that was closed before its first event does not begin to listen.
func TestClosedBeforeTheFirst(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		p := setUp(t, nc).NewPublisher(queue.PublisherConfig{})
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := nc.NumSubscriptions()
		if _, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`)); !errors.Is(err, queue.ErrPublisherClosed) {
			t.Errorf("got %v", err)
		}
		if n := nc.NumSubscriptions(); n != before {
			t.Errorf("%d subscriptions are left, %d before", n, before)
		}
	})
}

func TestCloseGivesUpWhenItsTimeEnds(t *testing.T) {
	bubble(t, func(t *testing.T, nc *nats.Conn) {
		noReply(t, nc)
		p := newQueue(t, nc).NewPublisher(queue.PublisherConfig{})
		var results []*queue.Result
		for range 2 {
			r, err := p.PublishAsync(t.Context(), []byte(`{"user_id":"ann"}`))
			if err != nil {
				t.Fatal(err)
			}
			results = append(results, r)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		for _, r := range results {
			if _, err := r.Wait(t.Context()); !errors.Is(err, queue.ErrPublisherClosed) {
				t.Fatalf("got %v", err)
			}
		}
	})
}

func TestADeniedPermissionIsNamed(t *testing.T) {
	t.Parallel()
	ats.Register()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		subject := queue.Topology{}.Subject("ann")
		denied := &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{subject}}}
		s, err := server.NewServer(&server.Options{
			DontListen: true, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
			Users: []*server.User{{Username: "u", Password: "p", Permissions: denied}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		defer s.WaitForShutdown()
		defer s.Shutdown()
		nc := connect(t, s, nats.UserInfo("u", "p"))
		p := newPublisher(t, setUp(t, nc), queue.PublisherConfig{})

		began := time.Now()
		_, err = p.Publish(t.Context(), []byte(`{"user_id":"ann"}`))
		if waited := time.Since(began); !errors.Is(err, jsapi.ErrNotPermitted) || waited > 2*time.Second {
			t.Fatalf("got %v after %v", err, waited)
		}
		if strings.Contains(err.Error(), subject) {
			t.Fatal("the error shows the user")
		}
		if _, err := p.Publish(t.Context(), []byte(`{"user_id":"bob"}`)); err != nil {
			t.Fatalf("another user's event: %v", err)
		}
	})
}

// moving is a server address that can be moved to another server.
type moving struct {
	mu sync.Mutex
	s  *embedded.Server
}

func (m *moving) InProcessConn() (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.s == nil {
		return nil, errors.New("no server just now")
	}
	return m.s.InProcessConn()
}

func (m *moving) to(s *embedded.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.s = s
}

func TestARestartOfTheServerLosesNothing(t *testing.T) {
	// Not parallel, and with empty pools: a reconnecting client takes a timer from a pool of the
	// process, and a timer from another bubble would end the program.
	runtime.GC()
	runtime.GC()
	ats.Register()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var address moving
		address.to(boot(t, dir))
		nc := connect(t, &address)
		p := newPublisher(t, setUp(t, nc), queue.PublisherConfig{})

		const users, each = 50, 20
		var results []*queue.Result
		publish := func(from, to int) {
			for i := from; i < to; i++ {
				r, err := p.PublishAsync(t.Context(), fmt.Appendf(nil, `{"user_id":"%d","metadata":{"n":%d}}`, i%users, i))
				if err != nil {
					t.Fatal(err)
				}
				results = append(results, r)
			}
		}
		publish(0, users*each/2)
		first := address.s
		address.to(nil)
		first.Shutdown()
		publish(users*each/2, users*each)
		time.Sleep(5 * time.Second)
		address.to(boot(t, dir))

		for i, r := range results {
			if _, err := r.Wait(t.Context()); err != nil {
				t.Fatalf("event %d: %v", i, err)
			}
		}
		_, bodies := stored(t, nc)
		if len(bodies) != users*each {
			t.Fatalf("%d events were stored, %d published", len(bodies), users*each)
		}
		last := map[string]int{}
		for _, body := range bodies {
			var user string
			var n int
			if _, err := fmt.Sscanf(strings.ReplaceAll(body, `"`, " "), "{ user_id : %s , metadata :{ n :%d}}", &user, &n); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if n < last[user] {
				t.Fatalf("event %d of user %s is stored after event %d", n, user, last[user])
			}
			last[user] = n
		}
	})
}
