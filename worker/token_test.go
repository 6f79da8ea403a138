package worker

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// A call whose connection breaks before anything is sent keeps its token, but it is not made if the fleet
// has begun to cool down, or calls have been stopped, while it waited for another connection.
func TestGateIsAskedAgain(t *testing.T) {
	t.Parallel()
	for name, shut := range map[string]func(*Worker){
		"a cooldown": func(w *Worker) { w.fleet.Cooldown().Start(time.Minute) },
		"an outage":  func(w *Worker) { w.gate.stop.reason = outage },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := idle(t, Config{})
			c := newCall(stocked(w, w.partition(&fleet.Claim{}), "u", 1), 1, false)
			w.senders <- struct{}{}
			if err := w.begin(c); err != nil {
				t.Fatal(err)
			}
			defer c.slow.Stop()
			time.Sleep(time.Second / 2)
			if err := w.begin(c); err != nil || c.sentAt != time.Now() {
				t.Errorf("%s: the second try: %v", name, err)
			}
			shut(w)
			if err := w.begin(c); !errors.Is(err, errGateClosed) {
				t.Errorf("%s: the third try: %v", name, err)
			}
		})
	}
}

// A call for backfill whose token expired waits for another one. If a live event of its user arrives
// meanwhile, it goes before other backfill, as if it waited for its first.
func TestLiveEventHurriesSecondTry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := idle(t, Config{RatePerReplica: true, Rate: ratelimit.Rate{Calls: 1, Window: time.Minute}, Burst: 1})
		claim := &fleet.Claim{}
		prepared := func(user string) *call {
			l := stocked(w, w.partition(claim), user, 0)
			_, x := admit(fleet.Delivery{Sequence: 1, Backfill: true, Body: []byte(`{"user_id":"` + user + `"}`)})
			l.push(x, 1<<20)
			l.state, l.call = calling, newCall(l, 1, false)
			w.senders <- struct{}{}
			return l.call
		}
		second, other := prepared("u"), prepared("other")
		if err := w.begin(second); err != nil {
			t.Fatal(err)
		}
		defer second.slow.Stop()
		time.Sleep(time.Second) // the connection breaks, and another one takes too long
		order := make(chan *call, 2)
		for _, c := range []*call{other, second} {
			go func() {
				if w.begin(c) == nil {
					order <- c
				}
			}()
			synctest.Wait()
		}
		w.Deliver(claim, fleet.Delivery{Sequence: 2, Body: []byte(`{"user_id":"u"}`)})
		if first := <-order; first != second {
			t.Error("the live event waits for the backfill of others")
		}
		(<-order).slow.Stop()
	})
}
