//go:build !noembed

package inspector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// mentions lists the streams that contain a text.
func (s *sim) mentions(q *queue.Queue, text string) (streams []string) {
	s.T.Helper()
	for _, c := range q.Topology().StreamConfigs(q.API().NATS.MaxPayload()) {
		for _, m := range s.Stored(q.API().JetStream, c.Name) {
			if all := fmt.Sprint(m.Subject, m.Header, string(m.Data)); strings.Contains(all, text) {
				streams = append(streams, c.Name)
				break
			}
		}
	}
	return streams
}

// A purge erases all data of the user, in every stream, and none of others.
func TestPurgeUser(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.Must(q.API().Clock.Read(t.Context()))
		c := s.store(q)
		bury := func(seq uint64, body string, death deadletter.Death) {
			s.added(c.Add(t.Context(), deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: seq}}, []byte(body), death))
		}
		bury(1, `{"user_id":"ann-7","metadata":{"n":1}}`, deadletter.Death{Reason: deadletter.Rejected, User: "ann-7"})
		bury(2, `{"user_id":"ann-7","company":{}}`, deadletter.Death{Reason: deadletter.Invalid}) // identified by the payload alone
		bury(3, `{"user_id":"ann-77","metadata":{"n":1}}`, deadletter.Death{Reason: deadletter.Rejected, User: "ann-77"})
		bury(4, `{"user_id":"ann-7","metadata":{"n":2}}`, deadletter.Death{Reason: deadletter.Rejected, User: "ann-7"})
		if result, err := New(q).Replay(t.Context(), s.selected(q, Filter{IDs: []uint64{4, 3}}, SelectConfig{Edit: edit}), ReplayConfig{}); err != nil || result.Replayed != 2 {
			t.Fatalf("got %+v, %v", result, err)
		}
		bury(5, `{"user_id":"ann-77"}`, deadletter.Death{Reason: deadletter.Rejected, User: "ann-77"})
		s.publish(q, "ann-7", "bob", "ann-77", "ann-7")
		_, err := q.API().JetStream.Publish(t.Context(), q.Topology().PlainSubject(), []byte(`{"user_id":"ann-7","metadata":7}`))
		s.Must(err)

		if _, err := New(q).PurgeUser(t.Context(), "", PurgeConfig{}); err == nil {
			t.Error("purged without a user")
		}
		want := PurgeResult{Waiting: 4, DeadLetters: 2, Originals: 1, VersionRecords: 1}
		result, err := New(q).PurgeUser(t.Context(), "ann-7", PurgeConfig{DryRun: true})
		want.found = result.found
		if err != nil || *result != want {
			t.Errorf("would purge %+v, %v; want %+v", result, err, want)
		}
		if n := len(s.history(q)); n != 1 {
			t.Errorf("%d actions after a dry run", n)
		}
		result, err = New(q).PurgeUser(t.Context(), "ann-7", PurgeConfig{By: "eve"})
		want.Run, want.found = result.Run, nil
		if err != nil || *result != want {
			t.Errorf("purged %+v, %v; want %+v", result, err, want)
		}
		if found := s.mentions(q, `ann-7"`); len(found) > 0 {
			t.Errorf("the user is still in %q", found)
		}
		if found := s.mentions(q, `ann-77"`); !slices.Equal(found, []string{workName, deadName, q.Topology().AuditStreamName()}) {
			t.Errorf("another user is in %q alone", found)
		}
		if s.backlog(q) != 3 || s.dead(q) != 1 {
			t.Errorf("%d events and %d letters are left", s.backlog(q), s.dead(q))
		}
		if got := s.history(q); len(got) != 2 || got[1] != `purge "user=sha256:`+jsapi.UserHash("ann-7")+`": done` {
			t.Errorf("the audit trail is %q", got)
		}
		result, err = New(q).PurgeUser(t.Context(), "ann-7", PurgeConfig{})
		if want = (PurgeResult{Run: result.Run}); err != nil || *result != want {
			t.Errorf("again: %+v, %v", result, err)
		}
	})
}

// An event that names its user by a number would become a dead letter of the user with that id.
func TestPurgeNumber(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		c := s.store(q)
		for i, body := range []string{`{"user_id":42,"metadata":{"n":1}}`, `{"user_id":421}`, `{"user_id":"421","metadata":{"user_id":42}}`} {
			name := deadletter.Position{Stream: made, Sequence: uint64(i) + 1}
			s.added(c.Add(t.Context(), deadletter.Event{Name: name}, []byte(body), deadletter.Death{Reason: deadletter.Invalid}))
			_, err := q.API().JetStream.Publish(t.Context(), q.Topology().PlainSubject(), []byte(body))
			s.Must(err)
		}
		result, err := New(q).PurgeUser(t.Context(), "42", PurgeConfig{})
		if want := (PurgeResult{Run: result.Run, Waiting: 1, DeadLetters: 1}); err != nil || *result != want {
			t.Errorf("purged %+v, %v; want %+v", result, err, want)
		}
	})
}

// onDisk stops the server and reports whether one of its files contains a text.
func (s *sim) onDisk(text string) (found bool) {
	s.T.Helper()
	s.Stop()
	s.Must(filepath.WalkDir(s.Dir(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found = found || bytes.Contains(data, []byte(text))
		return err
	}))
	return found
}

// The version record is overwritten, too, if its bucket permits that.
func TestPurgeOverwritesNewer(t *testing.T) {
	for name, test := range map[string]struct{ purge, deny, found bool }{
		"before":                 {found: true},
		"after":                  {purge: true},
		"that denies a deletion": {purge: true, deny: true, found: true},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.Change(q.API().JetStream, deadletter.VersionsStream(q.Topology()), func(c *jetstream.StreamConfig) { c.DenyDelete = test.deny })
				s.died(q, "ann", 7, 1)
				if test.purge {
					result, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{})
					if err != nil || result.VersionRecords != 1 {
						t.Errorf("got %+v, %v", result, err)
					}
					if n, err := s.store(q).Versions(t.Context(), "ann"); err != nil || n.Known() {
						t.Errorf("it is still there: %v", err)
					}
				}
				if s.onDisk(`"open":["`+deadletter.Position{Stream: made, Sequence: 7}.String()) != test.found {
					t.Errorf("on the disk: %t", !test.found)
				}
			})
		})
	}
}

// reader reads ahead and makes no calls.
type reader struct {
	*queue.Queue
	*fleet.Fleet
	revoking func() // nil returns at once

	mu    sync.Mutex
	ahead map[*fleet.Claim][]string // bodies
}

// readAhead starts a replica that reads ahead.
func (s *sim) readAhead(revoking func()) *reader {
	return s.readAheadOf(queue.Topology{}, revoking)
}

func (s *sim) readAheadOf(topology queue.Topology, revoking func()) *reader {
	q := s.queueOf(nil, topology)
	r := &reader{Queue: q, Fleet: fleet.New(q), revoking: revoking, ahead: map[*fleet.Claim][]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Work(ctx, fleet.MemberConfig{}, r) }()
	s.T.Cleanup(func() { cancel(); <-done })
	return r
}

// Deliver implements Handler.
func (r *reader) Deliver(c *fleet.Claim, d fleet.Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ahead[c] = append(r.ahead[c], string(d.Body))
}

// Revoke implements Handler.
func (*reader) Assign(*fleet.Claim) {}

func (r *reader) Revoke(c *fleet.Claim) {
	r.mu.Lock()
	busy := len(r.ahead[c]) > 0
	r.mu.Unlock()
	if busy && r.revoking != nil {
		r.revoking()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ahead, c)
}

// read counts the events read ahead, by body.
func read(replicas ...*reader) map[string]int {
	all := map[string]int{}
	for _, r := range replicas {
		r.mu.Lock()
		for body := range maps.Values(r.ahead) {
			for _, b := range body {
				all[b]++
			}
		}
		r.mu.Unlock()
	}
	return all
}

// Replicas drop what they have read ahead for a purged user before the purge returns. They read
// other users' events again.
func TestPurgeReadAhead(t *testing.T) {
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprint(replicas), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				var fleet []*reader
				var died atomic.Uint64
				var purged atomic.Bool
				for range replicas {
					fleet = append(fleet, s.readAhead(func() { // calls are in flight, and are refused
						if purged.Load() {
							return
						}
						time.Sleep(5 * time.Second)
						s.letter(q, deadletter.Position{Stream: made, Sequence: died.Add(1)}, "3", nil, `{"user_id":"ann"}`, deadletter.Death{Reason: deadletter.Rejected, User: "ann"})
					}))
				}
				held := func() (sum int) {
					for _, r := range fleet {
						sum += r.Held()
					}
					return sum
				}
				time.Sleep(5 * time.Second)
				s.Await(30*time.Second, "at work", func() bool { return held() == 17 })
				s.publish(q, "ann", "bob", "cleo", "ann", "dave", "ann")
				_, err := q.API().JetStream.Publish(t.Context(), q.Topology().PlainSubject(), []byte(`{"user_id":"ann"}`))
				s.Must(err)
				s.Await(time.Minute, "read", func() bool { return read(fleet...)[`{"user_id":"ann"}`] == 4 })
				begun := time.Now()
				result, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{})
				purged.Store(true)
				s.Must(err)
				if n := read(fleet...)[`{"user_id":"ann"}`]; n != 0 {
					t.Errorf("%d events of the user are still read ahead", n)
				}
				if d := time.Since(begun); d < 5*time.Second || d > 30*time.Second || result.Waiting != 4 || result.DeadLetters != died.Load() || result.Recalled < 1 || result.Recalled > 2 {
					t.Errorf("after %v: %+v", d, result)
				}
				if found := s.mentions(q, `"ann"`); len(found) > 0 {
					t.Errorf("the user is still in %q", found)
				}
				s.Await(20*time.Second, "read again", func() bool {
					return held() == 17 && maps.Equal(read(fleet...), map[string]int{`{"user_id":"bob"}`: 1, `{"user_id":"cleo"}`: 1, `{"user_id":"dave"}`: 1})
				})
			})
		})
	}
}

// The partitions are those of the stream: an operator does not say how many there are.
func TestPurgeReadAheadOfManyPartitions(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		wide, operator := queue.Topology{Name: "wide", Partitions: 64}, queue.Topology{Name: "wide"}
		q := s.queueOf(nil, wide)
		_, err := q.Setup(t.Context(), false)
		s.Must(err)
		var replicas []*reader
		held := 0
		for range 2 {
			replicas = append(replicas, s.readAheadOf(q.Topology(), nil))
		}
		s.Await(time.Minute, "at work", func() bool {
			held = replicas[0].Held() + replicas[1].Held()
			return held == 65 && replicas[0].Held() > 0 && replicas[1].Held() > 0
		})
		var users []string
		for i := range 40 { // in many partitions
			users = append(users, fmt.Sprint("u", i))
		}
		s.publish(q, users...)
		s.Await(time.Minute, "read", func() bool { return len(read(replicas...)) == len(users) })
		for _, user := range users {
			result, err := New(s.queueOf(nil, operator)).PurgeUser(t.Context(), user, PurgeConfig{})
			if err != nil || result.Waiting != 1 || result.Recalled != 1 {
				t.Fatalf("%s: %+v, %v", user, result, err)
			}
			if n := read(replicas...)[fmt.Sprintf(`{"user_id":%q}`, user)]; n != 0 {
				t.Errorf("the event of %s is still read ahead", user)
			}
		}
	})
}

// A call in flight ends normally, although its event is gone by then.
func TestPurgeDuringCall(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		r := s.replica(fleet.MemberConfig{})
		r.onDeliver = func([]byte) { time.Sleep(3 * time.Second) }
		s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
		s.publish(q, "ann")
		time.Sleep(time.Second)
		result, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{})
		if err != nil || result.Waiting != 1 || result.Recalled != 1 {
			t.Errorf("got %+v, %v", result, err)
		}
		s.Await(10*time.Second, "at work again", func() bool { return r.Held() == 17 })
		if s.Logged("lost ownership of partitions") {
			t.Errorf("the claim was lost\n%s", s.Log())
		}
	})
}

// What a dead replica has read ahead died with it.
func TestPurgeDeadReplica(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		r := s.replica(fleet.MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
		r.kill()
		s.publish(q, "ann")
		begun := time.Now()
		result, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{})
		if d := time.Since(begun); err != nil || result.Waiting != 1 || d > 12*time.Second {
			t.Errorf("after %v: %+v, %v", d, result, err)
		}
	})
}

// The error names a replica that does not release its claims; the result still counts what was
// done.
func TestPurgeStuckReplica(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		stuck := make(chan struct{})
		r := s.readAhead(func() { <-stuck })
		defer close(stuck)
		s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
		s.publish(q, "ann")
		result, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{})
		if err == nil || !strings.Contains(err.Error(), "restart those that hold "+s.consumers(q)[0]) || result.Waiting != 1 {
			t.Errorf("got %+v, %v", result, err)
		}
		s.publish(q, "ann")
		errStop := errors.New("interrupted")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Second, func() { cancel(errStop) })
		if result, err = New(q).PurgeUser(ctx, "ann", PurgeConfig{}); !errors.Is(err, errStop) || result.Waiting != 1 {
			t.Errorf("got %+v, %v", result, err)
		}
		if got := s.history(q); len(got) != 2 || !strings.Contains(got[0], "failed: replicas have not") || !strings.Contains(got[1], "stopped: interrupted") {
			t.Errorf("the audit trail is %q", got)
		}
	})
}

// A purge records the outcome of a replayed event, for those who wait for it.
func TestPurgeReplayed(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, other := s.queue(nil), s.queue(nil)
		s.letters(q, 3)
		time.AfterFunc(10*time.Second, func() {
			for i := range 3 {
				if _, err := New(other).PurgeUser(t.Context(), fmt.Sprint("u", i), PurgeConfig{}); err != nil {
					t.Error(err)
				}
			}
		})
		if result := s.replayed(q, ReplayConfig{Wait: true}); result.Purged != 3 {
			t.Errorf("got %+v", result)
		}
	})
}

// A large work stream with gaps is read to its end.
func TestPurgeWalk(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		for i := range 500 {
			s.publish(q, fmt.Sprint("u", i%5))
		}
		stream, err := q.API().JetStream.Stream(t.Context(), workName)
		s.Must(err)
		for seq := uint64(1); seq <= 500; seq++ {
			if seq%3 == 0 || seq > 100 && seq < 150 || seq < 20 || seq > 490 {
				s.Must(stream.DeleteMsg(t.Context(), seq))
			}
		}
		before := s.backlog(q)
		result, err := New(q).PurgeUser(t.Context(), "u2", PurgeConfig{})
		s.Must(err)
		left := uint64(0)
		for _, m := range s.Stored(q.API().JetStream, workName) {
			if left++; strings.Contains(string(m.Data), `"u2"`) {
				t.Errorf("event %d is still there", m.Sequence)
			}
		}
		if result.Waiting == 0 || left+result.Waiting != before {
			t.Errorf("%d of %d are left, %+v", left, before, result)
		}
	})
}

// The leader supplies what a lagging replica of the stream lacks. A purge does not read again what
// its dry run has read, but it reads later events.
func TestPurgeLaggingCopy(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, server := s.queue(nil), s.queue(nil)
		s.Change(q.API().JetStream, workName, func(c *jetstream.StreamConfig) { c.AllowDirect = false })
		answers := 0
		_, err := server.API().NATS.Subscribe(jsapi.DirectGet(workName), func(m *nats.Msg) { // a replica without any messages
			answers++
			_ = m.RespondMsg(&nats.Msg{Header: nats.Header{"Status": {"404"}}})
		})
		s.Must(err)
		s.flush(server)
		s.publish(q, "ann", "bob", "ann")
		found, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{DryRun: true})
		if err != nil || found.Waiting != 2 || answers == 0 {
			t.Fatalf("found %+v, %v, after %d answers", found, err, answers)
		}
		s.publish(q, "ann", "cleo")
		for _, stale := range []*PurgeResult{nil, {found: &foundWaiting{user: "bob", stream: found.found.stream, upTo: 9}}, {found: &foundWaiting{user: "ann", upTo: 9}}} {
			if again, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{DryRun: true, Found: stale}); err != nil || again.Waiting != 3 {
				t.Errorf("found %+v, %v", again, err)
			}
		}
		if result, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{Found: found}); err != nil || result.Waiting != 3 || s.backlog(q) != 2 {
			t.Errorf("got %+v, %v", result, err)
		}
	})
}

// So it does for dead letters and for the originals of edited events: what a worker has stored a moment
// before, a replica may not have yet.
func TestPurgeLaggingCopyOfLetters(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, server := s.queue(nil), s.queue(nil)
		for seq := range uint64(3) {
			s.letter(q, deadletter.Position{Stream: made, Sequence: seq + 1}, "3", nil, `{"user_id":"ann","metadata":{"n":1}}`, deadletter.Death{Reason: deadletter.Rejected, User: "ann"})
		}
		s.letter(q, deadletter.Position{Stream: made, Sequence: 9}, "3", nil, `{"user_id":"ann","company":{}}`, deadletter.Death{Reason: deadletter.Invalid})
		if result, err := New(q).Replay(t.Context(), s.selected(q, Filter{IDs: []uint64{1}}, SelectConfig{Edit: edit}), ReplayConfig{}); err != nil || result.Replayed != 1 {
			t.Fatalf("replayed %+v, %v", result, err)
		}
		for _, stream := range []string{deadName, q.Topology().AuditStreamName()} {
			s.Change(q.API().JetStream, stream, func(c *jetstream.StreamConfig) { c.AllowDirect = false })
			_, err := server.API().NATS.Subscribe(jsapi.DirectGet(stream), func(m *nats.Msg) {
				_ = m.RespondMsg(&nats.Msg{Header: nats.Header{"Status": {"404"}}})
			})
			s.Must(err)
		}
		s.flush(server)
		result, err := New(q).PurgeUser(t.Context(), "ann", PurgeConfig{})
		if err != nil || result.DeadLetters != 3 || result.Originals != 1 || result.Waiting != 1 {
			t.Errorf("got %+v, %v", result, err)
		}
		if found := s.mentions(q, `"ann"`); len(found) > 0 {
			t.Errorf("the user is still in %q", found)
		}
	})
}

// purgeRights are the permissions for a purge, as in the command's help.
var purgeRights = []string{
	"$JS.API.STREAM.INFO.*",
	"$JS.API.STREAM.MSG.GET.*",
	"$JS.API.STREAM.MSG.DELETE.*",
	"$JS.API.DIRECT.GET.*",
	"$JS.API.CONSUMER.NAMES.USERPILOT_IDENTIFY",
	"userpilot.identify-audit.action.>",
	"userpilot.identify-audit.verdict.>",
	"$KV.userpilot_identify.recall",
	"$KV.userpilot_identify_versions.>",
}

// These permissions suffice for a purge, and each is necessary; a missing one is named.
func TestPurgeRights(t *testing.T) {
	eachRight(t, purgeRights, func(t *testing.T, s *sim, admin, operator *queue.Queue, missing string) {
		s.Must(admin.API().Clock.Read(t.Context()))
		c := s.store(admin)
		for seq := range uint64(2) {
			s.added(c.Add(t.Context(), deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: seq + 1}}, []byte(`{"user_id":"ann"}`), deadletter.Death{Reason: deadletter.Rejected, User: "ann"}))
		}
		_, err := New(admin).Replay(t.Context(), s.selected(admin, Filter{IDs: []uint64{1}}, SelectConfig{}), ReplayConfig{})
		s.Must(err)
		working, stop := context.WithCancel(t.Context())
		r, done := &reader{ahead: map[*fleet.Claim][]string{}}, make(chan error, 1)
		go func() { done <- fleet.New(admin).Work(working, fleet.MemberConfig{}, r) }()
		defer func() { stop(); <-done }()
		s.Await(10*time.Second, "read", func() bool { return len(read(r)) == 1 })
		begun := time.Now()
		result, err := New(operator).PurgeUser(t.Context(), "ann", PurgeConfig{})
		if missing == "" {
			if err != nil || result.DeadLetters != 1 || result.Waiting != 1 || result.VersionRecords != 1 || result.Recalled != 1 {
				t.Errorf("got %+v, %v", result, err)
			}
			return
		}
		subject := strings.TrimRight(missing, "*>")
		if denied := jsapi.AsPermissionError(err); denied == nil || !strings.HasPrefix(denied.Subject, subject) || time.Since(begun) > 2*time.Second || strings.Contains(err.Error(), "ann") {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}
