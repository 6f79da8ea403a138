package worker

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/userpilot"
)

// caller answers every call with 2xx.
type caller struct{}

func (caller) Attempt(context.Context, userpilot.Call) (int, error) { return 202, nil }

// idle returns a worker that is not running.
func idle(t interface{ Fatal(...any) }, c Config) *Worker {
	c.Queue, c.Client = &queue.Queue{}, caller{}
	w, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	w.errands.size, w.archivers.size = 0, 0
	return w
}

// event returns a body of exactly size bytes, or of the smallest event if that is larger.
func event(size int) []byte {
	const frame = `{"user_id":"u","metadata":{"f":""}}`
	return []byte(`{"user_id":"u","metadata":{"f":"` + strings.Repeat("x", max(0, size-len(frame))) + `"}}`)
}

// laneModel is a lane with a model of what must be true of it.
type laneModel struct {
	l      *lane
	w      *Worker
	bodies [][]byte // of all events, oldest first
	next   uint64
	share  int64
}

func (m *laneModel) push(t *rapid.T) {
	body := event(rapid.IntRange(0, 3000).Draw(t, "size"))
	if m.l.user == "" || rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
		body = bytes.Repeat([]byte("?"), len(body))
	}
	var past *deadletter.ReplayInfo
	if rapid.IntRange(0, 9).Draw(t, "replay") == 0 {
		past = &deadletter.ReplayInfo{}
	}
	m.next += uint64(rapid.IntRange(1, 5).Draw(t, "gap"))
	before := m.l.bodies
	kept := m.l.loaded
	_, x := admit(fleet.Delivery{Sequence: m.next, Body: body})
	if past != nil {
		x.change().past = past
	}
	m.l.push(x, m.share)
	m.bodies = append(m.bodies, body)
	if m.l.loaded > kept && before > 0 && before+int64(len(body)) > m.share && m.next > m.l.resendThrough.Live {
		t.Fatal("a body was kept beyond the share")
	}
}

func (m *laneModel) drop(t *rapid.T) {
	n := rapid.IntRange(0, len(m.bodies)).Draw(t, "n")
	m.l.drop(n)
	if m.bodies = m.bodies[n:]; len(m.bodies) > 0 && m.l.head().Sequence > m.l.resendThrough.Live {
		m.l.resendThrough = fleet.Extent{}
	}
}

func (m *laneModel) shrink(t *rapid.T) {
	keep := rapid.Int64Range(0, 10_000).Draw(t, "keep")
	before := m.l.loaded
	m.l.shrink(keep)
	if m.l.loaded > 0 && m.l.loaded > m.l.head().covers() && m.l.bodies > keep {
		t.Fatalf("%d bytes are left, %d were to be kept", m.l.bodies, keep)
	}
	if before > 0 && m.l.loaded == 0 {
		t.Fatal("the first event's body is gone")
	}
}

// load reloads missing bodies, as the worker does.
func (m *laneModel) load(t *rapid.T) {
	if m.l.loaded == len(m.bodies) {
		return
	}
	n := rapid.IntRange(1, len(m.bodies)-m.l.loaded).Draw(t, "n")
	m.l.partition.busy++
	used := m.w.memory.used
	before := m.l.bytes
	m.l.state = loading
	reach, newer := m.l.resendThrough, m.l.versions
	m.l.resendThrough, m.l.versions = fleet.Extent{}, &deadletter.VersionRecord{} // otherwise the lane would ask its claim
	m.w.loaded(m.l, m.bodies[m.l.loaded:m.l.loaded+n], nil)
	m.l.resendThrough, m.l.versions = reach, newer
	if m.w.memory.used-used != m.l.bytes-before {
		t.Fatal("the memory's count and the lane's differ")
	}
	m.w.ready, m.w.archivers.errands, m.l.partition.busy = laneQueue{}, nil, 0
}

// merge folds events, as the worker does when memory is short.
func (m *laneModel) merge(*rapid.T) {
	if m.l.resendThrough == (fleet.Extent{}) && m.w.mayFold(m.l) {
		m.l.merge()
	}
}

// settle does what the worker does before it advances a lane.
func (m *laneModel) settle() {
	if m.l.folded && !m.w.mayFold(m.l) {
		m.l.unfold()
	}
}

// compared applies a comparison with newer events, as the worker does.
func (m *laneModel) compared(t *rapid.T) {
	m.l.unfold()
	for i := range m.l.loaded {
		if m.l.events[i].more().death != nil {
			break
		}
		rest, err := userpilot.Parse(event(0))
		if err != nil {
			t.Fatal(err)
		}
		m.l.setRemainder(&m.l.events[i], &rest)
		m.l.versions, m.l.checked = &deadletter.VersionRecord{}, i+1
		if rapid.Bool().Draw(t, "enough") {
			break
		}
	}
}

// mayCall reports whether an event may be sent: it is not dead, and was compared with newer events, if
// needed, since the last event left the lane.
func (m *laneModel) mayCall(i int) bool {
	x := &m.l.events[i]
	if i < m.l.loaded && !x.inMemory() {
		return true // it was folded into an earlier event
	}
	compared := m.l.versions != nil && i < m.l.checked && x.more().remainder != nil
	return i < m.l.loaded && x.more().death == nil && (x.more().past == nil || compared)
}

// take checks how many events the next call may hold.
func (m *laneModel) take(t *rapid.T) {
	if m.l.loaded == 0 || !m.mayCall(0) || m.l.needsCheck() {
		return
	}
	coalesce := rapid.Bool().Draw(t, "coalesce")
	m.l.bisection = bisection{candidates: rapid.IntRange(0, 9).Draw(t, "suspects")}
	if m.w.config.NoCoalesce = !coalesce; m.l.folded && !m.w.mayFold(m.l) {
		m.settle()
		return
	}
	n := m.l.take(coalesce)
	if n < m.l.loaded && !m.l.events[n].inMemory() {
		t.Fatal("a call holds a part of what was merged")
	}
	m.called(t, n)
	if n < 1 || n > m.l.loaded {
		t.Fatalf("a call of %d events, %d are loaded", n, m.l.loaded)
	}
	must := 0 // loaded events that must be in the call
	for must < m.l.loaded && m.l.events[must].Sequence <= m.l.resendThrough.Live && m.mayCall(must) && (m.l.versions == nil || must < m.l.checked) {
		must++
	}
	for i := range n {
		if !m.mayCall(i) {
			t.Fatalf("event %d of %d is called for", i, n)
		}
	}
	most := 1
	if coalesce {
		most = min(m.l.bisection.size(), maxMerge)
	}
	if n < must || n > max(must, most) {
		t.Fatalf("a call of %d events, where %d must go along and %d may", n, must, most)
	}
}

func (m *laneModel) check(t *rapid.T) {
	l := m.l
	if len(l.events) != len(m.bodies) || l.loaded < 0 || l.loaded > len(l.events) {
		t.Fatalf("%d events, %d of them loaded, want %d", len(l.events), l.loaded, len(m.bodies))
	}
	var loaded, stubs int64
	within := 0 // end of the folded event
	for i := range l.events {
		x := &l.events[i]
		stubs += stubBytes + int64(x.more().past.Size())
		covered := i < within
		if x.inMemory() != (i < l.loaded && !covered) {
			t.Fatalf("event %d of %d: in memory is %v, where the first %d should be", i, len(l.events), x.inMemory(), l.loaded)
		}
		if x.merged > 1 {
			within = i + x.covers()
			loaded += int64(x.size()) + loadedBytes
			m.isMerged(t, i)
			continue
		}
		if !x.inMemory() && x.more().body != nil {
			t.Fatal("a body is held that nobody counts")
		}
		if x.inMemory() {
			loaded += int64(len(m.bodies[i])) + loadedBytes
			if x.event != nil {
				loaded += int64(len(x.event.UserID()))
			}
			if x.more().remainder != nil {
				loaded += int64(len(x.more().remainder.Body()))
			}
			if !bytes.Equal(x.body(), m.bodies[i]) {
				t.Fatalf("event %d has another one's body", i)
			}
		}
	}
	if l.bodies != loaded || l.bytes != loaded+stubs {
		t.Fatalf("counted %d bytes, %d of them bodies; there are %d of bodies in %d events", l.bytes, l.bodies, loaded, len(l.events))
	}
	if l.needsLoad() != m.mustLoad() {
		t.Fatalf("needsLoad is %v", l.needsLoad())
	}
}

// isMerged checks that a folded event is the merge of its events.
func (m *laneModel) isMerged(t *rapid.T, first int) {
	x := &m.l.events[first]
	var events []userpilot.Event
	for _, body := range m.bodies[first : first+x.covers()] {
		e, err := userpilot.Parse(body)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	if want, n := userpilot.Merge(events); n != x.covers() || !bytes.Equal(x.event.Body(), want) {
		t.Fatalf("%d events from %d on have come to another body than %d of them come to", x.merged, first, n)
	}
}

// called checks the call of the first n events.
func (m *laneModel) called(t *rapid.T, n int) {
	for i := range n {
		if m.l.events[i].more().remainder != nil {
			return // it has less than its body
		}
	}
	c := newCall(m.l, n, false)
	var events []userpilot.Event
	for _, body := range m.bodies[:n] {
		e, err := userpilot.Parse(body)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	body := c.merge()
	if want, held := userpilot.Merge(events); held != c.n() || !bytes.Equal(body, want) {
		t.Fatalf("a call of %d events holds %d, want %d", n, c.n(), held)
	}
	if rapid.Bool().Draw(t, "failed") {
		m.l.resendThrough = m.l.resendThrough.Union(c.extent())
	}
}

func (m *laneModel) mustLoad() bool {
	for i := range m.l.events {
		x := &m.l.events[i]
		if i >= m.l.loaded && (i == 0 || x.Sequence <= m.l.resendThrough.Live) {
			return true
		}
	}
	return false
}

// Whatever happens to a lane, its counts equal a recount, and the loaded events are a prefix of its
// events.
func TestLaneModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		user := rapid.SampledFrom([]string{"u", ""}).Draw(t, "user")
		m := &laneModel{share: rapid.Int64Range(0, 20_000).Draw(t, "share"), w: idle(t, Config{})}
		m.l = &lane{user: user, partition: newPartition(&fleet.Claim{}, deadletter.NewStore(&queue.Queue{}))}
		if user != "" {
			m.l.resendThrough.Live = rapid.Uint64Range(0, 30).Draw(t, "reach")
		}
		t.Repeat(map[string]func(*rapid.T){
			"push": m.push, "merge": m.merge, "drop": m.drop, "shrink": m.shrink, "load": m.load, "take": m.take, "compared": m.compared, "": m.check,
		})
	})
}

// The delay after a failure grows, is never shorter than the time asked for, and starts over after a
// success.
func TestLaneDelay(t *testing.T) {
	t.Parallel()
	l := &lane{}
	const initial, longest = time.Second, time.Minute
	for i := range 20 {
		middle := min(initial<<i, longest)
		if d := l.delay(initial, longest, 0); d < middle/2 || d > middle*3/2 {
			t.Errorf("delay %d is %v, want about %v", i, d, middle)
		}
	}
	if d := l.delay(initial, longest, time.Hour); d != time.Hour {
		t.Errorf("an hour was asked for, the delay is %v", d)
	}
	l.recovered()
	if d := l.delay(initial, longest, 0); d > initial*3/2 {
		t.Errorf("after a success the delay is %v", d)
	}
}

// stocked returns a lane of a partition with n events of 1 KiB in memory.
func stocked(w *Worker, p *partition, user string, events int) *lane {
	l := &lane{user: user, partition: p}
	p.lanes[user] = l
	for i := range events {
		_, x := admit(fleet.Delivery{Sequence: uint64(i + 1), Body: event(1024)})
		l.push(x, 1<<40)
	}
	w.memory.add(l.bytes)
	w.waiting.add(l, 1)
	return l
}

// handed is an event with the claim that delivered it.
type handed struct {
	claim    *fleet.Claim
	delivery fleet.Delivery
}

// collector is a handler that keeps claims and events and does nothing with them.
type collector chan handed

func (c collector) Deliver(claim *fleet.Claim, d fleet.Delivery) { c <- handed{claim, d} }
func (c collector) Assign(*fleet.Claim)                          {}
func (c collector) Revoke(*fleet.Claim)                          {}

// withClaims runs f in a bubble with the claims of two partitions.
func withClaims(t *testing.T, f func(t *testing.T, a, b *fleet.Claim)) {
	t.Helper()
	withEvents(t, func(t *testing.T, a, b handed) { f(t, a.claim, b.claim) })
}

// withPipeline runs f in a bubble with a server that has the default streams.
func withPipeline(t *testing.T, f func(t *testing.T, q *queue.Queue, nc *nats.Conn)) {
	t.Helper()
	t.Parallel()
	queuetest.Run(t, func(t *testing.T, server *queuetest.Server) {
		nc, err := server.Connect(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		q, err := queue.New(nc, queue.Topology{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := q.Setup(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		f(t, q, nc)
	})
}

// withEvents runs f in a bubble with an event of each of two partitions.
func withEvents(t *testing.T, f func(t *testing.T, a, b handed)) {
	t.Helper()
	withPipeline(t, func(t *testing.T, q *queue.Queue, nc *nats.Conn) {
		for _, subject := range []string{q.Topology().PlainSubject(), q.Topology().Subject("u")} {
			if err := nc.Publish(subject, event(0)); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		claims := make(collector, 2)
		done := make(chan error, 1)
		go func() { done <- fleet.New(q).Work(ctx, fleet.MemberConfig{}, claims) }()
		defer func() { // even if f fails: otherwise the bubble does not end
			cancel()
			_ = receive(t, "the end of Work", done)
		}()
		f(t, receive(t, "a claim", claims), receive(t, "another claim", claims))
	})
}

// receive waits in fake time for a value from a channel, or for its close.
func receive[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case x := <-from:
		return x
	case <-time.After(10 * time.Minute):
		t.Fatalf("ten minutes later: not yet %s", what)
		panic("unreachable")
	}
}

// A call in flight that fails after its partition was revoked does not reduce the memory's count twice.
func TestMemoryAfterRevoke(t *testing.T) {
	withClaims(t, func(t *testing.T, claim, other *fleet.Claim) {
		w := idle(t, Config{Memory: 1 << 20})
		rest := stocked(w, w.partition(other), "v", 400) // more than half of the memory
		p := w.partition(claim)
		l := stocked(w, p, "u", 100)
		l.state = calling
		p.busy++
		revoked := make(chan struct{})
		go func() { w.Revoke(claim); close(revoked) }()
		synctest.Wait()
		w.mu.Lock()
		w.ended(newCall(l, 1, false), retry, fmt.Errorf("down"))
		w.mu.Unlock()
		receive(t, "revoked", revoked)
		if w.memory.used != rest.bytes || w.waiting.events != 400 {
			t.Errorf("%d events of %d bytes are counted, 400 of %d wait", w.waiting.events, w.memory.used, rest.bytes)
		}
	})
}

// deliverLate delivers an event that waits for room, and returns a channel that is closed when it has
// been let in.
func deliverLate(t *testing.T, w *Worker, c *fleet.Claim, d fleet.Delivery) <-chan struct{} {
	t.Helper()
	delivered := make(chan struct{})
	go func() {
		w.Deliver(c, d)
		close(delivered)
	}()
	synctest.Wait()
	if closed(delivered) {
		t.Fatal("nothing held the delivery back")
	}
	return delivered
}

// mustBeIn checks that the delivery has been let in.
func mustBeIn(t *testing.T, w *Worker, delivered <-chan struct{}) {
	t.Helper()
	synctest.Wait()
	if !closed(delivered) {
		t.Error("the delivery waits for ever")
	}
	w.mu.Lock()
	w.memory.signalRoom() // ends the goroutine anyway
	w.mu.Unlock()
}

// Revoking a partition may make room for others.
func TestRevokeMakesRoom(t *testing.T) {
	withClaims(t, func(t *testing.T, given, kept *fleet.Claim) {
		w := idle(t, Config{Concurrency: 1})
		p := w.partition(given)
		for i := range w.highWater() + 10 {
			l := stocked(w, p, fmt.Sprint(i), 1)
			l.state = ready
			w.ready.push(l)
		}
		stocked(w, w.partition(kept), "u", 1).state = calling
		delivered := deliverLate(t, w, kept, fleet.Delivery{Sequence: 2, Body: event(100)})
		w.Revoke(given)
		mustBeIn(t, w, delivered)
	})
}

// Fewer lanes are ready also when one of them has to be read again, instead of called.
func TestLaneThatIsReadAgainMakesRoom(t *testing.T) {
	withClaims(t, func(t *testing.T, claim, _ *fleet.Claim) {
		w := idle(t, Config{Concurrency: 1})
		p := w.partition(claim)
		for i := range w.highWater() {
			user := fmt.Sprint(i)
			if i == 0 {
				user = "u"
			}
			l := stocked(w, p, user, 3)
			l.live, l.state = 0, ready // backfill
			w.ready.push(l)
		}
		delivered := deliverLate(t, w, claim, fleet.Delivery{Sequence: 4, Body: event(100), Backfill: true})
		w.Deliver(claim, fleet.Delivery{Sequence: 2, Body: event(100)}) // for a user who is compared now
		w.mu.Lock()
		for w.ready.lenWell() > 0 {
			w.next(free, time.Now())
		}
		w.mu.Unlock()
		mustBeIn(t, w, delivered)
	})
}

// What a lane is blocked by may wait for room already: then it is admitted as if it came later.
func TestBlockedLaneAdmitsWhatWaits(t *testing.T) {
	withClaims(t, func(t *testing.T, claim, _ *fleet.Claim) {
		w := idle(t, Config{})
		p := w.partition(claim)
		l := stocked(w, p, "u", 1)
		w.memory.used += w.memory.limit
		delivered := deliverLate(t, w, claim, fleet.Delivery{Sequence: 9, Body: event(100)})
		w.mu.Lock()
		l.resendThrough = fleet.Extent{Live: 9}
		w.advance(l)
		w.mu.Unlock()
		synctest.Wait()
		if !closed(delivered) {
			t.Error("the delivery waits, and the lane for it")
		}
		w.mu.Lock()
		w.memory.used -= w.memory.limit
		w.memory.signalRoom() // ends the goroutine anyway
		w.mu.Unlock()
	})
}

// An outage that begins during the bisection of an exhausted call makes no dead letter.
func TestOutageDuringSearch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := idle(t, Config{MaxAttempts: 3})
		l := stocked(w, w.partition(&fleet.Claim{}), "u", 2)
		fail := func(n int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			l.state = calling
			l.partition.busy++
			w.ended(newCall(l, n, false), retry, fmt.Errorf("down"))
		}
		for range 4 { // the first has no evidence
			fail(2)
			w.gate.succeeded("other", time.Now(), time.Now())
		}
		if n := l.take(true); n != 1 {
			t.Fatalf("the spent call was not halved: %d events", n)
		}
		w.gate.failed(&lane{user: "well"}, ruleOf(retry, 0), failure{now: time.Now()}) // the outage begins
		for range 10 {
			fail(1)
		}
		if n := len(w.archivers.errands); n != 0 {
			t.Errorf("%d dead after %d attempts", n, l.attempts)
		}
	})
}

// Userpilot may have applied a merged call without an answer. If the worker resent it with a newer, bad
// event in it, Userpilot would refuse it, and the halves would set the user back.
func TestUnknownCallIsRepeatedAsItWas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := idle(t, Config{})
		l := stocked(w, w.partition(&fleet.Claim{}), "u", 5)
		w.mu.Lock()
		defer w.mu.Unlock()
		l.state = calling
		l.partition.busy++
		w.ended(newCall(l, 3, false), retry, fmt.Errorf("no answer"))
		if n := l.take(true); n != 3 {
			t.Errorf("the next call holds %d events, want the same 3", n)
		}
	})
}
