package worker

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

// A replica that has lost its claim stores no more dead letters for it: the partition's next owner may
// deliver the event.
func TestNoBurialWithoutClaim(t *testing.T) {
	withClaims(t, func(t *testing.T, claim, _ *fleet.Claim) {
		w := idle(t, Config{})
		p := w.partition(claim)
		l := stocked(w, p, "u", 1)
		l.head().change().death = &deadletter.Death{Reason: deadletter.Rejected, User: "u"}
		l.state = archiving
		p.busy++
		claim.Fail(errors.New("lost"))
		revoked := make(chan struct{})
		go func() { w.Revoke(claim); close(revoked) }()
		synctest.Wait()
		w.archiveHead(l)
		synctest.Wait()
		if n := w.Snapshot().Dead; n != 0 {
			t.Errorf("%d dead letters were stored for a claim that was lost", n)
		}
		if !closed(revoked) {
			t.Error("the claim is never given up")
		}
	})
}

// A settlement that ends after its partition was revoked must not free the memory a second time.
func TestMemoryAfterLateSettlement(t *testing.T) {
	withEvents(t, func(t *testing.T, given, kept handed) {
		w := idle(t, Config{})
		rest := stocked(w, w.partition(kept.claim), "v", 4)
		p := w.partition(given.claim)
		l := stocked(w, p, "u", 3)
		l.state = calling
		p.busy++
		revoked := make(chan struct{})
		go func() { w.Revoke(given.claim); close(revoked) }()
		synctest.Wait()
		w.mu.Lock()
		w.settle(l, []fleet.Delivery{given.delivery})
		p.ended(&p.busy)
		w.mu.Unlock()
		<-revoked
		if w.memory.used != rest.bytes || w.waiting.events != 4 {
			t.Errorf("%d events of %d bytes are counted, 4 of %d wait", w.waiting.events, w.memory.used, rest.bytes)
		}
	})
}
