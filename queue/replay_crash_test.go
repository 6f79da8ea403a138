//go:build !noembed

package queue

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// fuse passes some messages of a client. Then it blows and passes no more.
type fuse struct {
	mu     sync.Mutex
	lit    bool
	left   int
	passed int // since it was lit
}

func (f *fuse) light(messages int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lit, f.left, f.passed = true, messages, 0
}

// pass returns how many bytes may pass.
func (f *fuse) pass(p []byte) (n int, blown bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.lit && n < len(p) {
		if f.left == 0 {
			return n, true
		}
		size := messageSize(p[n:])
		if size == 0 { // incomplete: this test sends no message of this size
			return n, true
		}
		n += size
		f.left--
		f.passed++
	}
	return len(p), false
}

// messageSize is the length of the first message in the client's protocol.
func messageSize(p []byte) int {
	line, _, ended := bytes.Cut(p, []byte("\r\n"))
	size := len(line) + 2
	if bytes.HasPrefix(line, []byte("PUB ")) || bytes.HasPrefix(line, []byte("HPUB ")) {
		payload, err := strconv.Atoi(string(line[bytes.LastIndexByte(line, ' ')+1:]))
		if err != nil {
			return 0
		}
		size += payload + 2
	}
	if !ended || size > len(p) {
		return 0
	}
	return size
}

// mortal returns a pipeline on a connection that stays closed when the fuse blows.
func (s *sim) mortal() (*Queue, *fuse) {
	s.t.Helper()
	l := &line{sim: s, fuse: &fuse{}}
	nc, err := nats.Connect("", nats.InProcessServer(l), nats.NoReconnect(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	s.must(err)
	s.t.Cleanup(nc.Close)
	q, err := New(nc, Topology{}, nil)
	s.must(err)
	return q, l.fuse
}

// edit changes the plan of each.
func edit(l *DeadLetter) ([]byte, error) {
	return bytes.Replace(l.Body, []byte(`"n":`), []byte(`"m":`), 1), nil
}

// A replay may die between any two messages that it sends. The next one finishes it: nothing is
// lost and nothing is applied twice, however long that takes and whether or not workers run.
func TestReplayCrashes(t *testing.T) {
	for name, test := range map[string]crashes{
		"at once":                   {},
		"minutes later":             {pause: 5 * time.Minute},
		"one by one":                {rate: Rate{1, time.Second}},
		"at work":                   {working: true},
		"at work and minutes later": {pause: 5 * time.Minute, working: true},
		"edited":                    {edit: edit},
		"edited, minutes later":     {edit: edit, pause: 5 * time.Minute, working: true},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				test.sim, test.q = s, s.queue(nil)
				if test.working {
					test.applier = s.applier(nil)
				}
				for k := 0; ; k++ {
					if !test.crash(k) {
						if t.Logf("%d crashes", k); k < 15 {
							t.Error("the replay sends hardly any messages")
						}
						break
					}
				}
			})
		})
	}
}

// crashes configures how a replay is interrupted and finished.
type crashes struct {
	*sim
	q       *Queue
	pause   time.Duration // before the next replay
	working bool          // workers run all the time
	edit    func(*DeadLetter) ([]byte, error)
	rate    Rate
	applier *applier
	checked int // number of actions already checked
}

const crashedLetters = 3

// crash stores some letters, kills a replay after k messages, finishes it, and checks the result.
// It returns false if the replay was completed.
func (c *crashes) crash(k int) (died bool) {
	c.t.Helper()
	want := map[string]string{} // body by letter
	for i := range crashedLetters {
		age := Position{made, uint64(1000*k + i + 1)}
		user := fmt.Sprintf("u%d-%d", k, i)
		body := fmt.Sprintf(`{"user_id":%q,"metadata":{"n":%d}}`, user, i)
		c.letter(c.q, age, "3", nil, body, Death{Reason: Rejected, User: user})
		if want[age.String()] = body; c.edit != nil {
			after, err := c.edit(&DeadLetter{Body: []byte(body)})
			c.must(err)
			want[age.String()] = string(after)
		}
	}
	first, died := c.cutShort(k)
	time.Sleep(c.pause)
	next, err := NewInspector(c.q).Replay(c.t.Context(), c.selected(c.q, Filter{}, SelectConfig{Edit: c.edit}), ReplayConfig{})
	c.must(err)
	if next.Doubtful != 0 || next.Skipped != 0 || next.Replayed+next.Already+next.Gone != next.Selected {
		c.t.Errorf("after %d messages: the next replay counts %+v", k, next)
	}
	if first.Replayed+first.Doubtful > crashedLetters || first.Already+first.Gone+first.Skipped > 0 {
		c.t.Errorf("after %d messages: the first replay counts %+v", k, first)
	}
	if n := c.dead(c.q); n != 0 {
		c.t.Errorf("after %d messages: %d letters are left", k, n)
	}
	c.checkStored(k, want)
	c.checkApplied(k, want)
	c.checkTrail(k, want, first, next)
	return died
}

// cutShort is a replay that dies after k messages.
func (c *crashes) cutShort(k int) (result *ReplayResult, died bool) {
	q, fuse := c.mortal()
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	selection := c.selected(q, Filter{}, SelectConfig{Edit: c.edit})
	if selection.Letters != crashedLetters {
		c.t.Fatalf("%d are selected", selection.Letters)
	}
	fuse.light(k)
	q.api.NATS.SetClosedHandler(func(*nats.Conn) { cancel() }) // the process is gone
	result, err := NewInspector(q).Replay(ctx, selection, ReplayConfig{Rate: c.rate})
	q.api.NATS.Close()
	return result, err != nil
}

// checkStored checks the work stream when no workers run.
func (c *crashes) checkStored(k int, want map[string]string) {
	if c.working {
		return
	}
	copies := map[string]int{}
	for _, m := range c.stored(c.q, workName) {
		p := readSealed(m.Header, m.Data, c.seal(c.q))
		if copies[p.Letter.String()]++; want[p.Letter.String()] != string(m.Data) {
			c.t.Errorf("after %d messages: the stream has %s for %s", k, m.Data, p.Letter)
		}
	}
	for letter := range want {
		if n := copies[letter]; n < 1 || n > 2 || n == 2 && c.pause < dedupeWindow {
			c.t.Errorf("after %d messages: there are %d copies of %s", k, n, letter)
		}
	}
	for letter := range copies {
		if want[letter] == "" {
			c.t.Errorf("after %d messages: the stream has %s", k, letter)
		}
	}
}

// checkApplied checks what workers have applied.
func (c *crashes) checkApplied(k int, want map[string]string) {
	a := c.applier
	if a == nil {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		q := c.queue(nil)
		a = &applier{Queue: q, letters: c.store(q), applied: map[string]int{}, bodies: map[string]string{}}
		go func() { done <- a.Work(ctx, MemberConfig{}, a) }()
		defer func() { cancel(); <-done }()
	}
	c.await(10*time.Second, "drained", func() bool { return c.backlog(c.q) == 0 })
	a.mu.Lock()
	defer a.mu.Unlock()
	for letter, body := range want {
		if a.applied[letter] != 1 || a.bodies[letter] != body {
			c.t.Errorf("after %d messages: %s was applied %d times, as %s", k, letter, a.applied[letter], a.bodies[letter])
		}
	}
}

// checkTrail checks the audit trail.
func (c *crashes) checkTrail(k int, want map[string]string, first, next *ReplayResult) {
	actions, err := NewInspector(c.q).History(c.t.Context())
	c.must(err)
	runs := actions[c.checked:]
	c.checked = len(actions)
	var outcomes []string
	for _, a := range runs {
		outcomes = append(outcomes, a.Outcome)
	}
	if next.Run != "" { // otherwise nothing was left to do
		if outcomes[len(outcomes)-1] != "done" || runs[len(runs)-1].Run != next.Run {
			c.t.Errorf("after %d messages: the audit trail of both is %q", k, outcomes)
		}
		outcomes = outcomes[:len(outcomes)-1]
	}
	// A run that died before its first record was stored is missing, and its end is present only if
	// just the answer was lost.
	if n := len(outcomes); n > 1 || n == 0 && first.Replayed > 0 || n == 1 && outcomes[0] != "" && first.Replayed != crashedLetters {
		c.t.Errorf("after %d messages: the audit trail is %q, the result %+v", k, outcomes, first)
	}
	originals := map[string]int{}
	for _, m := range c.stored(c.q, c.q.topology.AuditStreamName()) {
		if letter, ok := strings.CutPrefix(m.Subject, auditSubject(c.q.topology, "original", "")); ok {
			originals[letter]++
			if !bytes.Contains(m.Data, []byte(`"n":`)) {
				c.t.Errorf("after %d messages: the original is %s", k, m.Data)
			}
		}
	}
	for letter := range want {
		if n := originals[letter]; c.edit != nil && n != 1 || c.edit == nil && n != 0 {
			c.t.Errorf("after %d messages: %d originals are kept of %s", k, n, letter)
		}
	}
}
