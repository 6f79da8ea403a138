package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// refuse answers 422 to every call that contains the text.
func refuse(text string) func(userpilottest.Request) userpilottest.Fault {
	return func(q userpilottest.Request) userpilottest.Fault {
		if bytes.Contains(q.Body, []byte(text)) {
			return userpilottest.Fault{Status: 422}
		}
		return userpilottest.Fault{}
	}
}

// Promise 4: of a thousand merged events only the guilty one dies, at the cost of tens of calls.
func TestGuiltyAmongAThousand(t *testing.T) {
	t.Parallel()
	for _, guilty := range []int{1, 2, 333, 499, 700, 999, 1000} {
		simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
			for n := 1; n <= 1000; n++ {
				more := ""
				if n == guilty {
					more = `,"bad":1`
				}
				s.publish("u", more)
			}
			r := s.start(nil)
			s.drain(time.Minute)
			r.stop()
			s.check()
			if n := len(s.dead()); n != 1 {
				t.Errorf("guilty %d: %d dead letters", guilty, n)
			}
			if n := s.api.Stats().Calls; n > 60 {
				t.Errorf("guilty %d: %d calls", guilty, n)
			}
		})
	}
}

// A series of bad events costs about one call for each.
func TestPoisonStorm(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		for range 100 {
			s.publish("u", `,"bad":1`)
			s.publish("v", "")
		}
		r := s.start(nil)
		s.drain(time.Minute)
		r.stop()
		s.check()
		if n := len(s.dead()); n != 100 {
			t.Errorf("%d dead letters", n)
		}
		if n := s.api.Stats().Calls; n > 250 {
			t.Errorf("%d calls for a hundred bad events", n)
		}
	})
}

// A user whose calls fail while others' succeed runs out of attempts, and only the
// guilty event dies. No other user waits for it.
func TestSickUser(t *testing.T) {
	t.Parallel()
	for _, fault := range []userpilottest.Fault{{Status: 500}, {Cut: true}, {Delay: time.Minute}} {
		simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
			s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
				if bytes.Contains(q.Body, []byte(`"sick":`)) {
					return fault
				}
				return userpilottest.Fault{}
			})
			r := s.start(nil)
			for n := range 10 {
				more := ""
				if n == 4 {
					more = `,"sick":1`
				}
				s.publish("a", more)
			}
			for range 3600 {
				if counts, err := s.queue.Counts(t.Context()); err == nil && counts.Backlog == 0 {
					break
				}
				begun := time.Now()
				s.publish("b", "")
				s.awaitNewest("b")
				if d := time.Since(begun); d > 500*time.Millisecond {
					t.Fatalf("%+v: another user waited %v", fault, d)
				}
				time.Sleep(time.Second)
			}
			s.drain(time.Minute)
			r.stop()
			s.check()
			dead := s.dead()
			if len(dead) != 1 || !bytes.Contains(dead[0].Data, []byte(`"sick":`)) {
				t.Fatalf("%+v: %d dead letters", fault, len(dead))
			}
			if got := dead[0].Header.Get("Dead-Reason"); got != "retries_exhausted" {
				t.Errorf("%+v: reason %q", fault, got)
			}
			if got, err := strconv.Atoi(dead[0].Header.Get("Dead-Attempts")); err != nil || got < 10 {
				t.Errorf("%+v: %d attempts", fault, got)
			}
		})
	}
}

// awaitNewest waits until the user's newest event has been delivered.
func (s *sim) awaitNewest(user string) {
	s.t.Helper()
	want := fmt.Sprint(s.oracle.Events(user))
	for range 6000 {
		if p, ok := s.api.Profile(user); ok && string(p.Properties["n"]) == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("event %s of %s is not delivered", want, user)
}

// invalidBodies are bodies that cannot be an identify.
func invalidBodies() map[string][]byte {
	return map[string][]byte{
		"empty":             {},
		"not JSON":          []byte("hello"),
		"half JSON":         []byte(`{"user_id":"u","metadata":{`),
		"array":             []byte(`[{"user_id":"u"}]`),
		"null":              []byte("null"),
		"deep":              []byte(`{"user_id":"u","metadata":{"a":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}}`),
		"invalid UTF-8":     []byte("{\"user_id\":\"u\xff\"}"),
		"no user":           []byte(`{"metadata":{}}`),
		"empty user":        []byte(`{"user_id":""}`),
		"numeric user":      []byte(`{"user_id":7}`),
		"company, no id":    []byte(`{"user_id":"u","company":{"name":"x"}}`),
		"over the size":     []byte(`{"user_id":"u","metadata":{"a":"` + strings.Repeat("x", 600<<10) + `"}}`),
		"wrong user member": []byte(`{"User_ID":"u"}`),
	}
}

// Each body that cannot be an identify becomes one dead letter with the original bytes, without a
// call, on either kind of subject, and affects no other event.
func TestInvalid(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		bodies := invalidBodies()
		for _, subject := range []string{"userpilot.identify", "userpilot.identify.a2V5"} {
			s.publish("before", "")
			for _, body := range bodies {
				s.publishRaw(subject, s.oracle.MustDie(body, deadletter.Invalid))
			}
			s.publish("after", "")
		}
		r := s.start(nil)
		s.drain(time.Minute)
		r.stop()
		s.check()
		if n := s.api.Stats().Calls; n > 4 {
			t.Errorf("%d calls", n)
		}
		found := map[string]int{}
		for _, m := range s.dead() {
			for name, body := range bodies {
				if bytes.Equal(body, m.Data) {
					found[name]++
				}
			}
			if m.Header.Get("Dead-Reason") != "invalid" || m.Header.Get("Dead-Error") == "" || m.Header.Get("Dead-Sequence") == "" {
				t.Errorf("headers: %v", m.Header)
			}
		}
		for name := range bodies {
			if found[name] != 2 {
				t.Errorf("%s: %d dead letters, want one for each subject", name, found[name])
			}
		}
	})
}

func (s *sim) publishRaw(subject string, body []byte) {
	s.t.Helper()
	js, err := jetstream.New(s.publishing)
	must(s.t, err)
	_, err = js.Publish(s.t.Context(), subject, body)
	must(s.t, err)
}

// panicky is a Caller that panics on some bodies.
type panicky struct{ worker.Caller }

func (p panicky) Attempt(ctx context.Context, call userpilot.Call) (int, error) {
	if bytes.Contains(call.Body, []byte(`"panic":`)) {
		panic("secret of " + string(call.Body))
	}
	return p.Caller.Attempt(ctx, call)
}

// An event on which the worker panics dies alone.
func TestPanic(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		for n := range 20 {
			more := ""
			if n == 11 {
				more = `,"panic":1`
			}
			s.publish("u", more)
		}
		r := s.start(func(c *worker.Config) { c.Client = panicky{Caller: c.Client} })
		s.drain(time.Minute)
		r.stop()
		s.check()
		dead := s.dead()
		if len(dead) != 1 || dead[0].Header.Get("Dead-Reason") != "panic" {
			t.Fatalf("%d dead letters", len(dead))
		}
		if strings.Contains(dead[0].Header.Get("Dead-Error")+s.logs.String(), "secret") {
			t.Error("the panic's text got out")
		}
	})
}

// limitDeadLetters sets how many dead letters the stream may hold; -1 is no limit.
func (s *sim) limitDeadLetters(messages int64) {
	s.t.Helper()
	js, err := jetstream.New(s.publishing)
	must(s.t, err)
	stream, err := js.Stream(s.t.Context(), "USERPILOT_IDENTIFY_DLQ")
	must(s.t, err)
	config := stream.CachedInfo().Config
	config.MaxMsgs = messages
	_, err = js.UpdateStream(s.t.Context(), config)
	must(s.t, err)
}

// Promise 5: while the dead-letter stream is full, the originals stay and other users go on; then
// each dead letter is stored once.
func TestDeadLetterStreamFull(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		s.limitDeadLetters(1)
		r := s.start(nil)
		for i := range 20 {
			s.publish(fmt.Sprintf("bad%d", i), `,"bad":1`)
		}
		time.Sleep(time.Minute)
		s.publish("good", "")
		s.awaitNewest("good")
		counts, err := s.queue.Counts(t.Context())
		must(t, err)
		if counts.Backlog != 19 || counts.DeadLetters != 1 {
			t.Errorf("%+v", counts)
		}
		if n := strings.Count(s.logs.String(), "dead letters cannot be stored"); n != 1 {
			t.Errorf("said %d times that dead letters cannot be stored:\n%s", n, s.logs.String())
		}
		if told := s.told(); told.Unburied != 19 || !told.UnburiedFull || told.UnburiedSince.IsZero() || told.UnburiedDetail == "" {
			t.Errorf("the fleet is told %+v", told)
		}
		if x := r.Snapshot(); r.Ready() != nil || !x.UnburiedFull || x.Unburied != 19 {
			t.Errorf("it is ready (%v), and tells %+v", r.Ready(), x)
		}
		s.limitDeadLetters(-1)
		s.drain(5 * time.Minute)
		if told, n := s.told(), strings.Count(s.logs.String(), "storing dead letters again"); told.Unburied != 0 || told.UnburiedFull || trouble(r.Snapshot()) != "" || n != 1 {
			t.Errorf("then %+v, %q; said %d times", told, trouble(r.Snapshot()), n)
		}
		r.stop()
		s.check()
		if n := len(s.dead()); n != 20 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// told returns what the one replica reports to the fleet after its next heartbeat.
func (s *sim) told() fleet.Replica {
	s.t.Helper()
	time.Sleep(10 * time.Second)
	status, err := inspector.New(s.queue).Status(s.t.Context())
	must(s.t, err)
	if len(status.Replicas) != 1 {
		s.t.Fatalf("%d replicas", len(status.Replicas))
	}
	return status.Replicas[0]
}

// The report also covers causes other than a full stream, and it ends with the claim.
func TestDeadLettersHaveNoStream(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		js, err := jetstream.New(s.publishing)
		must(t, err)
		r := s.start(nil)
		s.publish("good", "")
		s.drain(time.Minute)
		must(t, js.DeleteStream(t.Context(), "USERPILOT_IDENTIFY_DLQ"))
		s.publish("bad", `,"bad":1`)
		time.Sleep(time.Second)
		if remark := trouble(r.Snapshot()); remark != "" {
			t.Errorf("after a second it remarks %q", remark)
		}
		time.Sleep(10 * time.Second)
		if x := r.Snapshot(); x.Unburied != 1 || x.UnburiedFull {
			t.Errorf("got %+v", x)
		}
		if missing := r.View().Missing; len(missing) != 1 || queue.PartOf(missing[0]) != queue.PartDead || strings.Count(s.logs.String(), "streams of the pipeline do not exist") != 1 {
			t.Errorf("it misses %v:\n%s", missing, s.logs.String())
		}
		_, err = s.queue.Setup(t.Context(), false)
		must(t, err)
		s.drain(5 * time.Minute)
		time.Sleep(15 * time.Second)
		if x := r.Snapshot(); x.Unburied != 0 || len(r.View().Missing) > 0 || !strings.Contains(s.logs.String(), "all streams exist again") {
			t.Errorf("then %+v, missing %v", x, r.View().Missing)
		}
		r.stop()
	})
}

// The log reports dead letters at once, and does not grow with their number.
func TestDeathsAreCountedInTheLog(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		r := s.start(nil)
		const invalid = 500
		for i := range invalid {
			s.publishRaw(fmt.Sprint("userpilot.identify.a", i), []byte("no"))
		}
		s.publish("u", `,"bad":1`)
		s.drain(time.Minute)
		if said := s.logs.String(); strings.Count(said, `msg="dead letter" `) != 2 || strings.Contains(said, `msg="dead letters"`) {
			t.Errorf("at once it said\n%s", said)
		}
		time.Sleep(10 * time.Second)
		s.publishRaw("userpilot.identify.a", []byte("no"))
		s.publishRaw("userpilot.identify.a", []byte("no"))
		s.drain(time.Minute)
		r.stop()
		said := s.logs.String()
		sum := strings.Count(said, `msg="dead letter" `)
		for _, m := range regexp.MustCompile(`msg="dead letters" count=(\d+) reason=invalid status=0`).FindAllStringSubmatch(said, -1) {
			n, err := strconv.Atoi(m[1])
			must(t, err)
			sum += n
		}
		if lines := strings.Count(said, `msg="dead letter`); sum != invalid+3 || lines > 5 {
			t.Errorf("%d lines tell of %d deaths:\n%s", lines, sum, said)
		}
	})
}

// A dead letter's line in the log has the ID of the dead letter, and the group that its readers find.
func TestDeathsAreNamedInTheLog(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		r := s.start(nil)
		s.publish("u", `,"bad":1`)
		s.drain(time.Minute)
		s.publishRaw("userpilot.identify.a", []byte("no"))
		s.drain(time.Minute)
		r.stop()
		letters := map[deadletter.Reason]*deadletter.Letter{}
		for l, err := range inspector.New(s.queue).DeadLetters(t.Context(), inspector.Filter{}) {
			must(t, err)
			letters[l.Reason] = l
		}
		invalid, rejected := letters[deadletter.Invalid], letters[deadletter.Rejected]
		for _, want := range []string{
			fmt.Sprintf(`msg="dead letter" id=%d sequence=1 reason=rejected status=422 group=%s`, rejected.ID, rejected.Group),
			fmt.Sprintf(`msg="dead letter" id=%d sequence=2 reason=invalid status=0 group=%s`, invalid.ID, invalid.Group),
		} {
			if said := s.logs.String(); strings.Count(said, want+"\n") != 1 {
				t.Errorf("%s is not in\n%s", want, said)
			}
		}
	})
}

// While dead letters cannot be stored, their bodies do not take the memory that live events need. The
// worker reloads them unchanged when they can be stored.
func TestDeadLetterStreamFullLeavesRoom(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		s.limitDeadLetters(1)
		r := s.start(func(c *worker.Config) { c.Memory = 4 << 20 })
		filler := strings.Repeat("x", 400<<10)
		const bad = 40 // ten of them fill the memory
		for i := range bad {
			s.publish(fmt.Sprintf("bad%d", i), fmt.Sprintf(`,"bad":1,"f":%q`, filler))
		}
		s.publish("good", "")
		s.awaitNewest("good")
		s.limitDeadLetters(-1)
		s.drain(5 * time.Minute)
		r.stop()
		s.check()
		for _, m := range s.dead() {
			if len(m.Data) < len(filler) {
				t.Errorf("a dead letter of %d bytes", len(m.Data))
			}
		}
		if n := len(s.dead()); n != bad {
			t.Errorf("%d dead letters", n)
		}
	})
}

// A dead letter contains everything that is known, and the original bytes.
func TestDeadLetterHeaders(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		s.publish("u", "")
		s.publish("jane@example.com", `, "bad" : 1.0`)
		r := s.start(nil)
		s.drain(time.Minute)
		r.stop()
		dead := s.dead()
		if len(dead) != 1 {
			t.Fatalf("%d dead letters", len(dead))
		}
		want := `{"user_id":"jane@example.com","metadata":{"n":1,"e1":true, "bad" : 1.0}}`
		if string(dead[0].Data) != want {
			t.Error("the payload is not the original")
		}
		h := dead[0].Header
		for name, value := range map[string]string{
			"Dead-Reason": "rejected", "Dead-Status": "422", "Dead-User": "jane@example.com", "Dead-Sequence": "2", "Dead-Attempts": "1",
		} {
			if h.Get(name) != value {
				t.Errorf("%s is %q, want %q", name, h.Get(name), value)
			}
		}
		for _, name := range []string{"Dead-At", "Dead-Published-At"} {
			if _, err := time.Parse(time.RFC3339, h.Get(name)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"Dead-Error", "Dead-Request-Id"} {
			if h.Get(name) == "" {
				t.Errorf("no %s", name)
			}
		}
		if strings.Contains(s.logs.String(), "jane") {
			t.Error("the log names a user")
		}
	})
}

// The worker logs once that its stream was deleted; when the stream is back, it continues.
func TestStreamDeleted(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		r := s.start(nil)
		s.publish("u", "")
		s.drain(time.Minute)
		js, err := jetstream.New(s.publishing)
		must(t, err)
		must(t, js.DeleteStream(t.Context(), "USERPILOT_IDENTIFY"))
		time.Sleep(time.Minute)
		if n := strings.Count(s.logs.String(), "cannot work now"); n != 1 {
			t.Errorf("said %d times:\n%s", n, s.logs.String())
		}
		_, err = s.queue.Setup(t.Context(), false)
		must(t, err)
		s.publish("u", "")
		s.awaitNewest("u")
		r.stop()
		s.check()
	})
}

// The worker does not change a stream that differs: it says what differs and stops.
func TestStreamDiffers(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		other, err := queue.New(s.publishing, queue.Topology{Partitions: 8}, nil)
		must(t, err)
		_, err = other.Setup(t.Context(), true)
		must(t, err)
		r := s.start(nil)
		err = r.wait()
		mismatch, ok := errors.AsType[*queue.MismatchError](err)
		if !ok || len(mismatch.Differences) != 1 || !strings.Contains(err.Error(), "partitions is 8") {
			t.Errorf("stopped with %v", err)
		}
	})
}
