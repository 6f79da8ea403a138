// Package oracle judges the promises of identify-worker from outside. The simulation in package
// worker, the container tests and the campaign of real processes all use it.
//
// Its evidence is what was published ([Oracle.Next]), what the API received and which calls took
// effect ([Oracle.Receive], [Oracle.Order]), and what is in the dead-letter stream
// ([Oracle.Dead]). Each event of a user carries its number as the property "n", and a property of
// its own, "e<number>", so that a merged call shows whose events it holds.
//
// It judges:
//
//   - Order: no call takes its user back, whatever the API answers. An event is repeated only with
//     the call that was the user's current one; no event is skipped, or missing within a call. All
//     this holds among a user's live events, and among the user's backfill. A live event may be
//     called before older backfill, but never the reverse.
//   - Settings: a call sets what its events set, except for what newer events have set since. So for
//     each property the newest publication wins, whichever class it came by.
//   - Fates: each event is delivered, or becomes a dead letter exactly once; none is lost or invented.
//   - Profiles: they are what one call for each event, in order, would have made. The company of
//     backfill is not set if a newer live event has put the user into another one.
//   - The limit: [Busiest] counts the calls of the fullest sliding window.
//
// An event's fate is known when it is published. A harness must report the damage that it does
// itself: a server that forgets ([Oracle.BroughtBack]), an event that is removed ([Oracle.Removed]).
package oracle

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// Oracle knows what was published and judges what became of it. It is safe for concurrent use.
type Oracle struct {
	// BroughtBack reports whether, between two calls of a user, the server may have brought back
	// events whose removal it had confirmed: a server that is killed forgets what it has not
	// synced. Even then the newest event must come with them. Nil means never.
	BroughtBack func(from, to time.Time) bool

	mu        sync.Mutex
	users     map[string]*user
	dooms     map[string]*doom // by body
	strangers map[string]bool  // users of events that the oracle did not make
	received  int              // calls that Order has judged
	delivered int
	repeats   int
	overtook  int
}

// New returns an Oracle that knows no events yet.
func New() *Oracle {
	return &Oracle{users: map[string]*user{}, dooms: map[string]*doom{}, strangers: map[string]bool{}}
}

// Finding is a breach of a promise.
type Finding struct {
	User string // the user concerned; empty if unknown
	What string
}

func (f Finding) String() string {
	if f.User == "" {
		return f.What
	}
	return f.User + ": " + f.What
}

// Next makes a user's next event and returns its body.
func (o *Oracle) Next(name string, e Event) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	u := o.users[name]
	if u == nil {
		u = &user{name: name, newest: map[string]int{}, set: map[string]setting{}, companies: map[string]int{}, want: profile{}, have: profile{}}
		o.users[name] = u
	}
	body := u.next(e)
	if e.Dies != "" {
		o.dooms[string(body)] = &doom{reason: e.Dies, times: 1}
	}
	return body
}

// Removed records that the harness removed a user's event from the stream, without the worker.
func (o *Oracle) Removed(name string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.users[name].events[n-1].removed = true
}

// Events returns how many events of a user have been made.
func (o *Oracle) Events(name string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if u := o.users[name]; u != nil {
		return len(u.events)
	}
	return 0
}

// Due returns the number of a user's oldest event that should have been delivered and has not been;
// if there is none, a number above all events.
func (o *Oracle) Due(name string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.users[name].due()
}

// DueLive is Due among live events.
func (o *Oracle) DueLive(name string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.users[name].dueOf(false)
}

// IsBackfill reports whether a user's event is backfill.
func (o *Oracle) IsBackfill(name string, n int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.users[name].isBackfill(n)
}

// Overtook returns how many live events took effect before older backfill of their users.
func (o *Oracle) Overtook() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.overtook
}

// Counts returns how many different events have taken effect, and how many calls repeated some that
// had already.
func (o *Oracle) Counts() (delivered, repeats int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.delivered, o.repeats
}

// Receive judges a call when the API receives it. If something is wrong with the call, Receive
// returns that and otherwise ignores the call. repeated are the call's events that had taken effect
// already.
func (o *Oracle) Receive(c Call) (repeated []int, wrong string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.receive(c)
}

func (o *Oracle) receive(c Call) (repeated []int, wrong string) {
	u := o.users[c.User]
	if u == nil {
		return nil, "a call for an unknown user"
	}
	if wrong := u.check(c, o.BroughtBack); wrong != "" {
		return nil, wrong
	}
	t := u.take(c)
	o.delivered += t.delivered
	o.overtook += t.overtook
	if len(t.repeated) > 0 {
		o.repeats++
	}
	return t.repeated, ""
}

// Order judges the calls that a stand-in has answered, oldest first. It may be called again with
// the same calls followed by newer ones. It returns only the first finding for each user.
func (o *Oracle) Order(calls []userpilottest.Call) (found []Finding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range calls[o.received:] {
		u := o.users[c.User]
		if u == nil && o.strangers[c.User] && !c.Applied || u != nil && u.broken {
			continue
		}
		i, err := Parse(c.Body)
		if err != nil {
			found = append(found, Finding{What: fmt.Sprintf("a call's body: %v: %.300q", err, c.Body)})
			continue
		}
		if _, wrong := o.receive(Call{Identify: i, At: c.Time, Status: c.Status, Applied: c.Applied}); wrong != "" {
			found = append(found, Finding{c.User, c.Time.Format(time.StampMilli) + ": " + wrong})
			if u != nil {
				u.broken = true
			}
		}
	}
	o.received = len(calls)
	return found
}

// Lost returns a finding for each user with events that should have been delivered and have not
// been. It names the oldest.
func (o *Oracle) Lost() []Finding {
	return o.each(func(u *user) string {
		if n := u.due(); n <= len(u.events) {
			return fmt.Sprintf("event %d is not delivered", n)
		}
		return ""
	})
}

// Profiles returns a finding for each user whose profile is not what one call for each event, in
// order, would have made. It skips users with undelivered events.
func (o *Oracle) Profiles() []Finding {
	return o.each(func(u *user) string {
		if d := u.have.difference(u.want); d != "" && u.due() > len(u.events) {
			return "the profile is not what one call for each event makes: " + d
		}
		return ""
	})
}

// each runs a check for each user and collects the findings.
func (o *Oracle) each(wrong func(*user) string) (found []Finding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(o.users)) {
		if u := o.users[name]; !u.broken {
			if what := wrong(u); what != "" {
				found = append(found, Finding{name, what})
			}
		}
	}
	return found
}

// Verdict judges a run that has drained, by all calls and all dead letters.
func (o *Oracle) Verdict(calls []userpilottest.Call, letters []*jetstream.RawStreamMsg) []Finding {
	return slices.Concat(o.Order(calls), o.Lost(), o.Profiles(), o.Dead(letters))
}

// Busiest returns the largest number of these instants within any window of that length.
func Busiest(times []time.Time, length time.Duration) int {
	w := userpilottest.Window{Length: length}
	for _, at := range slices.SortedFunc(slices.Values(times), time.Time.Compare) {
		w.Add(at)
	}
	return w.Most()
}
