package worker

import (
	"fmt"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// crowd returns a lane with n events.
func crowd(w *Worker, events int) *lane {
	return stocked(w, newPartition(&fleet.Claim{}, deadletter.NewStore(&queue.Queue{})), "u", events)
}

// arrive pushes one more event, as Deliver does.
func (l *lane) arrive(w *Worker) {
	_, x := admit(fleet.Delivery{Sequence: uint64(len(l.events) + 1), Body: event(1024)})
	before := l.bytes
	l.push(x, 1<<40)
	w.memory.add(l.bytes - before)
}

// The events of a call that may be resent unchanged are not folded with later ones.
func TestFoldLeavesTheCallAlone(t *testing.T) {
	t.Parallel()
	w := idle(t, Config{})
	l := crowd(w, 4)
	l.merge()
	c := newCall(l, 4, false)
	for range 4 {
		l.arrive(w)
		l.merge()
	}
	l.resendThrough = c.extent()
	l.fails(time.Now(), "")
	if n := l.take(true); n != 4 || l.head().covers() != 4 {
		t.Errorf("the call is repeated with %d events, merged with those of %d, it had 4", n, l.head().covers())
	}
	l.resendThrough = fleet.Extent{}
	if n := l.take(true); n != 8 {
		t.Errorf("the next call holds %d events of 8", n)
	}
	if body := string(newCall(l, 8, false).merge()); body != string(event(1024)) {
		t.Errorf("it says %.200s", body)
	}
}

// A lane whose events must be checked one by one reloads them unfolded.
func TestUnfold(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*lane){
		"a call was refused": func(l *lane) { l.bisection.refused(4) },
		"there are replays":  func(l *lane) { l.head().change().past = &deadletter.ReplayInfo{} },
	} {
		w := idle(t, Config{})
		l := crowd(w, 4)
		used := w.memory.used
		w.memory.used = w.memory.limit
		w.makeRoom(l)
		if w.memory.used -= w.memory.limit - used; l.head().covers() != 4 {
			t.Fatalf("%d events are merged", l.head().covers())
		}
		change(l)
		if w.advance(l); l.loaded != 0 || l.state != loading || w.memory.used != l.bytes {
			t.Errorf("%s: %d events are loaded, the lane does %v; %d bytes are counted, want %d", name, l.loaded, l.state, w.memory.used, l.bytes)
		}
	}
}

// A full memory holds hundreds of events for each of many users.
func TestMemoryHoldsMany(t *testing.T) {
	t.Parallel()
	const users, memory = 64, 4 << 20
	w := idle(t, Config{Memory: memory, Rate: ratelimit.Rate{Calls: 1, Window: 1e9}})
	c := &fleet.Claim{}
	p := w.partition(c)
	for i := range users { // the zero claim knows no new users
		user := fmt.Sprintf("user-%d", i)
		p.lanes[user] = &lane{user: user, partition: p}
	}
	n := 0
	for ; !w.memory.full(false); n++ {
		body := fmt.Appendf(nil, `{"user_id":"user-%d","metadata":{"plan":"pro","note":"%0200d"}}`, n%users, n)
		w.Deliver(c, fleet.Delivery{Sequence: uint64(n + 1), Body: body})
	}
	if each := n / users; each < 700 {
		t.Errorf("%d events of each user in %d bytes for each", each, memory/users)
	}
	for _, l := range p.lanes {
		if held := l.take(true); held < 600 {
			t.Fatalf("a call holds %d events of %d", held, len(l.events))
		}
	}
}
