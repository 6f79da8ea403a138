package worker_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// oracle knows what was published and judges, from outside, what became of it: what the
// stand-in received, and what lies in the dead-letter stream.
//
// Each event of a user bears its number as the property "n", and a property of its own,
// "e<number>", so that a merged call shows whose events it held.
type oracle struct {
	t *testing.T

	mu        sync.Mutex
	published map[string]int    // events of each user
	model     map[string]string // what the profile's shared property must be at the end
}

func newOracle(t *testing.T) *oracle {
	return &oracle{t: t, published: map[string]int{}, model: map[string]string{}}
}

// next makes the user's next event. more is put into its metadata as it is.
func (o *oracle) next(user, more string) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.published[user]++
	n := o.published[user]
	return fmt.Appendf(nil, `{"user_id":%q,"metadata":{"n":%d,"e%d":true%s}}`, user, n, n, more)
}

// events is how many events have been made in all.
func (o *oracle) events() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, of := range o.published {
		n += of
	}
	return n
}

type identify struct {
	User     string                     `json:"user_id"`
	Metadata map[string]json.RawMessage `json:"metadata"`
}

// numbers are the events that a call held, and the newest of them.
func numbers(t *testing.T, body []byte) (held []int, newest int) {
	t.Helper()
	var x identify
	if err := json.Unmarshal(body, &x); err != nil {
		t.Fatal(err)
	}
	for name := range x.Metadata {
		var n int
		if _, err := fmt.Sscanf(name, "e%d", &n); err == nil {
			held = append(held, n)
		}
	}
	slices.Sort(held)
	if err := json.Unmarshal(x.Metadata["n"], &newest); err != nil {
		t.Fatal(err)
	}
	return held, newest
}

// dead lists the dead letters: user and number of each event, by what the payload says.
func (s *sim) dead() []jetstream.RawStreamMsg {
	s.t.Helper()
	js, err := jetstream.New(s.publishing)
	must(s.t, err)
	stream, err := js.Stream(s.t.Context(), "USERPILOT_IDENTIFY_DLQ")
	must(s.t, err)
	var letters []jetstream.RawStreamMsg
	for seq := range stream.CachedInfo().State.LastSeq {
		m, err := stream.GetMsg(s.t.Context(), seq+1)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // the stream was full
		}
		must(s.t, err)
		letters = append(letters, *m)
	}
	return letters
}

// check judges the run. All must have drained.
func (o *oracle) check(s *sim) {
	o.t.Helper()
	calls := s.api.Calls()
	delivered := o.checkOrder(calls)
	o.checkFates(s, delivered)
	if n := s.way.busiest(s.window); s.limit > 0 && n > s.limit {
		o.t.Errorf("%d calls in one window, the limit is %d", n, s.limit)
	}
	if secret := testKey; bytes.Contains([]byte(s.logs.String()), []byte(secret)) {
		o.t.Error("the key is in the log")
	}
}

// checkOrder fails if a user was ever taken back, and returns each user's delivered events.
func (o *oracle) checkOrder(calls []userpilottest.Call) map[string]map[int]int {
	o.t.Helper()
	newest := map[string]int{}
	delivered := map[string]map[int]int{}
	for _, c := range calls {
		if !c.Applied {
			continue
		}
		held, last := numbers(o.t, c.Body)
		if last < newest[c.User] {
			o.t.Errorf("user %s: event %d was delivered after %d, at %s", c.User, last, newest[c.User], c.Time.Format(time.TimeOnly))
		}
		newest[c.User] = max(newest[c.User], last)
		if delivered[c.User] == nil {
			delivered[c.User] = map[int]int{}
		}
		for _, n := range held {
			delivered[c.User][n]++
		}
	}
	return delivered
}

// checkFates fails if an event was neither delivered nor died, or died twice.
func (o *oracle) checkFates(s *sim, delivered map[string]map[int]int) {
	o.t.Helper()
	deaths := map[string]map[int]int{}
	for _, m := range s.dead() {
		var x identify
		if json.Unmarshal(m.Data, &x) != nil || x.Metadata["n"] == nil {
			continue // not one of the oracle's
		}
		_, n := numbers(o.t, m.Data)
		if deaths[x.User] == nil {
			deaths[x.User] = map[int]int{}
		}
		deaths[x.User][n]++
	}
	for _, user := range slices.Sorted(maps.Keys(o.published)) {
		for n := 1; n <= o.published[user]; n++ {
			switch d := deaths[user][n]; {
			case d > 1:
				o.t.Errorf("user %s: event %d died %d times", user, n, d)
			case d == 0 && delivered[user][n] == 0:
				o.t.Errorf("user %s: event %d is lost", user, n)
			}
		}
		for n := range delivered[user] {
			if n > o.published[user] {
				o.t.Errorf("user %s: event %d was invented", user, n)
			}
		}
	}
}

// lockedBuffer is a log that many write.
type lockedBuffer struct {
	stuck chan struct{} // writing blocks until it is closed; nil for a buffer that takes all at once

	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	if b.stuck != nil {
		<-b.stuck
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
