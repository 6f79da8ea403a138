package demo

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

const (
	sampleSize  = 3000
	sampleUsers = 200

	flakyUser  = "user-013" // its first calls fail; its events are delivered all the same
	doomedUser = "user-099-broken"
)

// sampleEvent is one event of the demo.
type sampleEvent struct {
	user       string
	body       []byte
	unreadable bool // no identify at all
}

// sampleEvents returns the same events in every run. A few of them are bad, each in its own way.
func sampleEvents() []sampleEvent {
	random := sampleRandom()
	var events []sampleEvent
	for range sampleSize {
		events = append(events, goodEvent(random))
	}
	for i, bad := range []sampleEvent{
		{user: doomedUser, body: fmt.Appendf(nil, `{"user_id":"%s","metadata":{"plan":"pro"}}`, doomedUser)},
		{body: []byte(`{"user_id":"user-042","metadata":{"plan":`), unreadable: true},
		{body: []byte(`{"metadata":{"plan":"pro"}}`), unreadable: true},
		{body: []byte(`{"user_id":42}`), unreadable: true},
		{body: []byte(`{"user_id":"user-050","company":{"name":"No Id Inc."}}`), unreadable: true},
		{user: "user-060", body: []byte(`{"user_id":"user-060","metadata":{"tags":["nested","values"]}}`)},
	} {
		events[50+i*100] = bad
	}
	return events
}

func sampleRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func goodEvent(random *rand.Rand) sampleEvent {
	plans := []string{`"trial"`, `"basic"`, `"pro"`, `null`}
	number := random.IntN(sampleUsers)
	user := fmt.Sprintf("user-%03d", number)
	body := fmt.Appendf(nil, `{"user_id":"%s","metadata":{"plan":%s,"seats":%d,"last_seen_at":"2026-01-%02dT10:00:00Z"}`,
		user, plans[random.IntN(len(plans))], 1+random.IntN(50), 1+random.IntN(28))
	company := number % 20
	if random.IntN(50) == 0 {
		company = 20 // somebody changes jobs: events of two companies are never merged
	}
	if random.IntN(2) == 0 { // a company's properties never change here, for users are delivered in any order
		body = fmt.Appendf(body, `,"company":{"id":"company-%02d","name":"Company %d"}`, company, company)
	}
	return sampleEvent{user: user, body: append(body, '}')}
}

// faults decides what the stand-in does to the worker: one user's calls fail at first, another's
// always; once it asks for a pause, and once it is down for a moment.
type faults struct {
	mu      sync.Mutex
	flaky   int
	upAgain time.Time
}

const (
	pauseAtCall  = 100
	outageAtCall = 200
	outage       = 1500 * time.Millisecond
	flakyCalls   = 2
)

func (b *faults) fault(q userpilottest.Request) userpilottest.Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.Number == outageAtCall {
		b.upAgain = q.Time.Add(outage)
	}
	switch {
	case q.Number == pauseAtCall:
		return userpilottest.Fault{Status: 429, RetryAfter: time.Second}
	case q.Time.Before(b.upAgain):
		return userpilottest.Fault{Status: 503}
	case q.User == doomedUser:
		return userpilottest.Fault{Status: 500}
	case q.User == flakyUser && b.flaky < flakyCalls:
		b.flaky++
		return userpilottest.Fault{Status: 500}
	}
	return userpilottest.Fault{}
}
