package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// deadEvent is a body that must become a dead letter, and the headers that it must have: "*" stands
// for any value that is not empty.
type deadEvent struct {
	body    []byte
	headers map[string]string
}

// invalid are bodies that no call is made for. The user of the last two can be read nevertheless.
func invalid() []deadEvent {
	user := "unlucky" + userDomain
	of := func(body, user string) deadEvent {
		headers := map[string]string{"Dead-Reason": "invalid", "Dead-Error": "*", "Dead-Group": "*"}
		if user != "" {
			headers["Dead-User"], headers["Dead-Origin"] = user, "*"
		}
		return deadEvent{body: []byte(body), headers: headers}
	}
	return []deadEvent{
		of(`hello`, ""),
		of(`{"user_id":"half`, ""),
		of(`[]`, ""),
		of(`null`, ""),
		of(strings.Repeat("[", 20_000)+strings.Repeat("]", 20_000), ""),
		of("{\"user_id\":\"\xff\"}", ""),
		of(`{}`, ""),
		of(`{"user_id":""}`, ""),
		of(`{"user_id":7}`, "7"),
		of(fmt.Sprintf(`{"user_id":%q,"company":{"name":"Acme"}}`, user), user),
		of(fmt.Sprintf(`{"user_id":%q,"metadata":{"x":%q}}`, user, strings.Repeat("x", 600<<10)), user),
	}
}

// refused returns a body whose property "refuse" makes the stand-in refuse it, with 422 or
// always with 500.
func refused(status int, reason, attempts string, n int) deadEvent {
	user := fmt.Sprintf("refused-%d-%d%s", status, n, userDomain)
	return deadEvent{
		body: fmt.Appendf(nil, `{"user_id":%q,"metadata":{"refuse":%d}}`, user, status),
		headers: map[string]string{
			"Dead-Reason": reason, "Dead-Status": strconv.Itoa(status), "Dead-Code": "scripted_fault", "Dead-Error": "*",
			"Dead-Request-Id": "*", "Dead-Attempts": attempts, "Dead-User": user, "Dead-Origin": "*", "Dead-Group": "*",
		},
	}
}

// refuse answers as a body asks for.
func refuse(q userpilottest.Request) userpilottest.Fault {
	for _, status := range []int{http.StatusUnprocessableEntity, http.StatusInternalServerError} {
		if bytes.Contains(q.Body, fmt.Appendf(nil, `"refuse":%d`, status)) {
			return userpilottest.Fault{Status: status}
		}
	}
	return userpilottest.Fault{}
}

// Bad events become dead letters, each exactly once although the worker is killed meanwhile, with
// all headers and the original bytes. The good events around them are delivered.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.api.SetFaults(refuse)
	events := append(invalid(), refused(500, "retries_exhausted", "3", 1))
	for i := range 5 {
		events = append(events, refused(422, "rejected", "1", i))
	}
	sequences := map[string]uint64{}
	for _, g := range events {
		sequences[string(g.body)] = s.publishBad(g)
	}
	names := users(40)
	for _, user := range names {
		s.publish(user)
	}

	flags := []string{"--max-attempts=3", "--backoff-initial=100ms", "--backoff-max=200ms"}
	first := s.startWorker(flags...)
	within(t, time.Minute, "some dead letters", func() bool { return s.dead() > 0 })
	first.kill()
	s.startWorker(flags...)
	// Failures count only while other calls succeed, so good events go on until all bad ones are
	// dead.
	for i := 0; s.dead() < len(events) && i < 1000; i++ {
		s.publish(names[i%len(names)])
		within(t, time.Minute, "the backlog to shrink", func() bool { return s.backlog() < 20 })
	}
	s.drain()
	s.check()

	letters := s.deadLetters()
	for _, g := range events {
		i := slices.IndexFunc(letters, func(l *jetstream.RawStreamMsg) bool { return bytes.Equal(l.Data, g.body) })
		if i < 0 {
			continue // check reports it
		}
		g.headers["Dead-Partition"] = "plain"
		g.headers["Dead-Sequence"] = strconv.FormatUint(sequences[string(g.body)], 10)
		checkHeaders(t, g, letters[i].Header)
	}
}

// dead returns how many different events have dead letters.
func (s *system) dead() int {
	s.t.Helper()
	bodies := map[string]bool{}
	for _, letter := range s.deadLetters() {
		bodies[string(letter.Data)] = true
	}
	return len(bodies)
}

// publishBad publishes such a body, as any NATS client could, and returns its sequence.
func (s *system) publishBad(g deadEvent) uint64 {
	s.t.Helper()
	ack, err := s.js.Publish(s.t.Context(), queue.Topology{}.PlainSubject(), s.oracle.MustDie(g.body, deadletter.Reason(g.headers["Dead-Reason"])))
	must(s.t, err)
	return ack.Sequence
}

// checkHeaders fails if a header is missing or wrong, or is not in the contract.
func checkHeaders(t *testing.T, g deadEvent, got nats.Header) {
	t.Helper()
	for _, name := range []string{"Dead-At", "Dead-Published-At"} {
		if at, err := time.Parse(time.RFC3339, got.Get(name)); err != nil || time.Since(at) > time.Hour {
			t.Errorf("%.60q: %s is %q", g.body, name, got.Get(name))
		}
		g.headers[name] = "*"
	}
	for name, want := range g.headers {
		if value := got.Get(name); value != want && (want != "*" || value == "") {
			t.Errorf("%.60q: %s is %q, want %q", g.body, name, value, want)
		}
	}
	for name := range got {
		if g.headers[name] == "" && !strings.HasPrefix(name, "Nats-") {
			t.Errorf("%.60q: %s is %q, want none", g.body, name, got.Get(name))
		}
	}
}
