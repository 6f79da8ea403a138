package worker

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/queue/fleet"
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
