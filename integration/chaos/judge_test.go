package main

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

const ann = "user-00001" + userDomain

// trial is a judge that is fed by hand.
type trial struct {
	*judge
	t *testing.T
}

func newTrial(t *testing.T) *trial {
	s := standard()
	s.rate = ratelimit.Rate{Calls: 10, Window: 10 * time.Second}
	s.own, s.replicas = true, 1 // a fleet's ledger may allow all ten calls at once after a pause
	return &trial{newJudge(s), t}
}

// publish publishes n more events.
func (x *trial) publish(n int) {
	for range n {
		body, _ := x.intend(ann, oracle.Event{})
		x.stored(ann, oracle.Event{}, body, 0)
	}
}

// call receives a call with these events, and its status; 0 cuts the connection.
func (x *trial) call(status int, numbers ...int) {
	c := &call{Call: oracle.Call{Status: status, Applied: status == 202}}
	c.User, c.Numbers = ann, numbers
	if len(numbers) > 0 {
		c.Metadata = oracle.Properties{"n": fmt.Append(nil, c.High())}
	}
	x.receive(c)
	x.answered(c, status == 0)
}

// repeat delivers an event twice, and calls between in the middle.
func (x *trial) repeat(between func()) {
	x.publish(1)
	x.call(202, 1)
	between()
	x.call(202, 1)
}

// repeatBackfill delivers backfill, calls between, and delivers a live event and the backfill again.
func (x *trial) repeatBackfill(between func()) {
	backfill := oracle.Event{Backfill: true}
	body, _ := x.intend(ann, backfill)
	x.stored(ann, backfill, body, 0)
	x.call(202, 1)
	between()
	<-time.After(2 * time.Second)
	x.publish(1)
	x.call(202, 2)
	x.receive(&call{Call: oracle.Call{Applied: true, Identify: oracle.Identify{User: ann, Numbers: []int{1}}}})
}

// accuses fails unless the first violation contains this text; an empty text means no violation.
func (x *trial) accuses(want string) {
	x.t.Helper()
	got := x.result().violations
	switch {
	case want == "" && len(got) > 0:
		x.t.Errorf("unexpected violation: %s", got[0])
	case want != "" && len(got) == 0:
		x.t.Errorf("no violation, want: %s", want)
	case want != "" && !strings.Contains(got[0], want):
		x.t.Errorf("the violation is %s, want: %s", got[0], want)
	}
}

// The judge finds each kind of violation, and none in a correct neighbor.
func TestJudge(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		want string
		log  func(*trial)
	}{
		"taken back":                            {"taken back from event 2 to 1", func(x *trial) { x.publish(2); x.call(202, 1, 2); x.call(202, 1) }},
		"repeated after a lost answer":          {"", func(x *trial) { x.publish(1); x.call(0, 1); x.call(202, 1) }},
		"repeated for no reason":                {"nothing explains why", func(x *trial) { x.repeat(func() {}) }},
		"repeated after a kill":                 {"", func(x *trial) { x.repeat(func() { x.faults.happened("kill -9", 0) }) }},
		"repeated after SIGTERM":                {"nothing explains why", func(x *trial) { x.repeat(func() { x.faults.peace("SIGTERM", 0)() }) }},
		"repeated at a distance":                {"nothing explains why", func(x *trial) { x.repeat(func() { x.faults.slow("NATS is 300ms away", 0)() }) }},
		"repeated by one with a tenth of a CPU": {"", func(x *trial) { x.repeat(func() { x.faults.happened("a tenth of a CPU", 0) }) }},
		"repeated on a busy machine":            {"", func(x *trial) { x.repeat(func() { x.faults.happened("the machine is busy", everyone) }) }},
		"repeated after another's kill":         {"nothing explains why", func(x *trial) { x.repeat(func() { x.faults.happened("kill -9", 5) }) }},
		"brought back by a server's kill": {"", func(x *trial) {
			x.publish(3)
			x.call(202, 1)
			x.call(202, 2)
			x.faults.happened(serverKill, everyone)
			x.call(202, 1, 2, 3)
		}},
		"taken back by a server's kill": {"taken back from event 2 to 1", func(x *trial) {
			x.publish(2)
			x.call(202, 1)
			x.call(202, 2)
			x.faults.happened(serverKill, everyone)
			x.call(202, 1)
		}},
		"too many in a window":   {"11 calls in 9.9s", func(x *trial) { x.manyCalls(11, 890*time.Millisecond) }},
		"as many as allowed":     {"", func(x *trial) { x.manyCalls(10, 890*time.Millisecond) }},
		"too many in a second":   {"4 calls in 900ms", func(x *trial) { x.manyCalls(4, 0) }},
		"as many as in a second": {"", func(x *trial) { x.manyCalls(3, 0) }},
		"lost":                   {"event 2 is not delivered, and has left the stream", func(x *trial) { x.publish(2); x.call(202, 1); x.lost() }},
		"stuck":                  {"event 2 is not delivered within 5s after", func(x *trial) { x.publish(2); x.call(202, 1); x.stuck(5 * time.Second) }},
		"stuck, without user":    {"the stream was not empty", func(x *trial) { x.publish(1); x.call(202, 1); x.stuck(5 * time.Second) }},
		"a property too many": {"a call sets more", func(x *trial) {
			x.publish(1)
			x.receive(&call{Call: oracle.Call{Applied: true, Identify: oracle.Identify{
				User: ann, Numbers: []int{1}, Metadata: oracle.Properties{"n": []byte("1"), "more": []byte("1")},
			}}})
		}},
		"backfill repeated after a kill, behind a live event": {"", func(x *trial) { x.repeatBackfill(func() { x.faults.happened("kill -9", 0) }) }},
		"backfill repeated for no reason":                     {"event 1 was repeated, and nothing explains why", func(x *trial) { x.repeatBackfill(func() {}) }},
		"a dead letter of a user": {"event 1: an unexpected dead letter", func(x *trial) {
			x.publish(1)
			x.call(202, 1)
			x.buries(`{"user_id":"` + ann + `","metadata":{"e1":true}}`)
		}},
		"an unknown dead letter":  {"an unexpected dead letter", func(x *trial) { x.buries(`{"user_id":"eve"}`) }},
		"the server's own letter": {"", func(x *trial) { x.buries(`{"stream":"USERPILOT_IDENTIFY", "seq":1}`) }},
		"nonsense, stored twice":  {"", func(x *trial) { x.storedInvalid([]byte("no"), 1); x.buries("no", "no") }},
		"nonsense, dead twice":    {"one dead letter too many", func(x *trial) { x.storedInvalid([]byte("no"), 0); x.buries("no", "no") }},
		"a key in a log":          {"shows", func(x *trial) { x.shown(1, "output", []byte("key="+keyPrefix+"1")) }},
		"a user in a log":         {"shows", func(x *trial) { x.shown(1, "output", []byte("about "+ann)) }},
		"a harmless log":          {"", func(x *trial) { x.shown(1, "output", []byte("level=INFO")) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				x := newTrial(t)
				c.log(x)
				x.accuses(c.want)
			})
		})
	}
}

// buries judges dead letters with these bodies, as if they were not identifies.
func (x *trial) buries(bodies ...string) {
	var letters []*jetstream.RawStreamMsg
	for i, body := range bodies {
		header := nats.Header{"Dead-Reason": {"invalid"}, "Dead-Sequence": {fmt.Sprint(i)}}
		letters = append(letters, &jetstream.RawStreamMsg{Data: []byte(body), Header: header})
	}
	x.settled(letters)
}

func (x *trial) manyCalls(n int, apart time.Duration) {
	x.publish(n)
	for i := range n {
		x.call(202, i+1)
		<-time.After(apart)
	}
}

func TestJudgeHoldsEverySlidingWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newTrial(t)
		x.manyCalls(100, time.Second+time.Millisecond) // ten in any ten seconds
		x.accuses("")
		x.manyCallsFrom(101, 4)
		x.accuses("11 calls")
	})
}

func (x *trial) manyCallsFrom(first, n int) {
	x.publish(n)
	for i := range n {
		x.call(202, first+i)
	}
}

func TestJudgeHoldsTheSilence(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		after time.Duration
		fault bool
		slow  bool
		want  string
	}{
		"on its way": {after: 100 * time.Millisecond},
		"broken":     {after: 700 * time.Millisecond, want: "called during the cooldown"},
		"over":       {after: time.Second},
		"cut off":    {after: 700 * time.Millisecond, fault: true},
		"far away":   {after: 700 * time.Millisecond, slow: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				x := newTrial(t)
				x.publish(1)
				<-time.After(time.Minute)
				x.cooldown(time.Second)
				if c.fault {
					x.faults.happened("half-open to NATS", 3)
				}
				if c.slow {
					x.faults.slow("NATS is 300ms away", 3)()
				}
				<-time.After(c.after)
				x.call(202, 1)
				x.accuses(c.want)
			})
		})
	}
}

// One call may be late after a long enough freeze: nothing can take back what it had checked.
func TestJudgeExcusesOneCallAtAThaw(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newTrial(t)
		x.publish(2)
		x.call(202, 1)
		thaw := x.faults.begin(frozen, 0)
		<-time.After(3 * time.Second)
		x.call(202, 1, 2)
		thaw()
		x.call(202, 1)
		x.accuses("")
		if n := x.result().late; n != 1 {
			t.Errorf("%d late calls, want 1", n)
		}
		x.call(202, 1)
		x.accuses("taken back")
	})
}

func TestStoryTellsWhatHappened(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newTrial(t)
		x.publish(2)
		x.call(202, 1, 2)
		x.faults.happened("kill -9", 0)
		x.faults.happened("kill -9", 4)
		x.call(500, 1)
		story := x.result().violations[0]
		for _, part := range []string{"event 1 published", "calls with events 1 to 2: status 202", "replica 0: kill -9", "calls with event 1: status 500"} {
			if !strings.Contains(story, part) {
				t.Errorf("the story lacks %q:\n%s", part, story)
			}
		}
		if strings.Contains(story, "replica 4") {
			t.Errorf("the story includes a replica that had no part in it:\n%s", story)
		}
	})
}
