package worker

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/identify-worker/identify-worker/queue/fleet"
)

// A lane that has something in progress goes on only when that has ended.
func TestTransitions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		from, to state
		legal    bool
	}{
		{parked, ready, true},
		{parked, calling, false},
		{parked, callBackoff, false},
		{blocked, calling, false},
		{loading, loading, true},
		{loading, settling, false},
		{archiving, settling, true},
		{archiving, ready, false},
		{archiving, callBackoff, false},
		{checking, settling, true},
		{checking, archiveBackoff, false},
		{ready, calling, true},
		{ready, ready, false},
		{ready, settling, false},
		{calling, callBackoff, true},
		{calling, calling, false},
		{settling, ready, true},
		{settling, settling, false},
		{settling, calling, false},
		{callBackoff, ready, true},
		{callBackoff, calling, false},
		{archiveBackoff, archiving, true},
		{checkBackoff, checking, true},
	} {
		l := &lane{state: test.from}
		want := test.from
		if test.legal {
			want = test.to
		}
		if panicked := panics(func() { l.transition(test.to) }); panicked == test.legal || l.state != want {
			t.Errorf("from %v to %v: panicked %v, and the state is %v", test.from, test.to, panicked, l.state)
		}
	}
}

func panics(f func()) (panicked bool) {
	defer func() { panicked = recover() != nil }()
	f()
	return false
}

// A lane whose call fails while its partition is being released has no call any more: findStall would
// look at it.
func TestFailureWhileRevoking(t *testing.T) {
	withClaims(t, func(t *testing.T, claim, _ *fleet.Claim) {
		w := idle(t, Config{})
		p := w.partition(claim)
		l := stocked(w, p, "u", 1)
		l.state = calling
		p.busy = 2
		revoked := make(chan struct{})
		go func() { w.Revoke(claim); close(revoked) }()
		synctest.Wait()
		w.mu.Lock()
		w.ended(newCall(l, 1, false), retry, fmt.Errorf("down"))
		if l.state != parked {
			t.Errorf("the lane is %v", l.state)
		}
		p.ended(&p.busy)
		w.mu.Unlock()
		receive(t, "revoked", revoked)
	})
}
