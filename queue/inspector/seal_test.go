//go:build !noembed

package inspector

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/userpilot"
)

// cutShort runs a replay of one letter that ends before the letter is deleted. It returns the
// published event.
func (s *sim) cutShort(q *queue.Queue, letter deadletter.Position) (stored *jetstream.RawStreamMsg) {
	s.T.Helper()
	key, err := s.store(q).LoadSeal(s.T.Context())
	s.Must(err)
	p := q.NewPublisher(queue.PublisherConfig{})
	for l, err := range New(q).DeadLetters(s.T.Context(), Filter{}) {
		s.Must(err)
		if !l.Name.Same(letter) {
			continue
		}
		event, err := userpilot.Parse(l.Body)
		s.Must(err)
		sent := outgoing{letter: l, event: event}
		result, err := p.PublishEvent(s.T.Context(), event, append(sent.sealed(key, "cut short", false).Options(l), queue.WithMessageID(key.ReplayID(letter)))...)
		s.Must(err)
		receipt, err := result.Wait(s.T.Context())
		s.Must(err)
		stream, err := q.API().JetStream.Stream(s.T.Context(), q.Topology().StreamName())
		s.Must(err)
		stored, err = stream.GetMsg(s.T.Context(), receipt.Sequence)
		s.Must(err)
	}
	s.Must(p.Close(s.T.Context()))
	return stored
}

// forge publishes as a producer can.
func (s *sim) forge(q *queue.Queue, body string, h nats.Header) {
	s.T.Helper()
	m := &nats.Msg{Subject: q.Topology().Subject("eve"), Header: h, Data: []byte(body)}
	_, err := q.API().JetStream.PublishMsg(s.T.Context(), m)
	s.Must(err)
}

// A producer who knows a letter's name cannot make a replay delete it unsent: neither by using the
// replay's message id, nor by making a worker record the outcome.
func TestForgedReplaysDeleteNoLetter(t *testing.T) {
	for name, h := range map[string]nats.Header{
		"a message id":     {nats.MsgIdHdr: {"replay." + deadletter.Position{Stream: made, Sequence: 1}.String()}},
		"a delivered copy": {deadletter.HeaderLetter: {deadletter.Position{Stream: made, Sequence: 1}.String()}, deadletter.HeaderLetterID: {"1"}, deadletter.HeaderReplays: {"1"}, deadletter.HeaderForced: {"1"}, deadletter.HeaderRun: {"r"}},
		"with a seal": {
			deadletter.HeaderLetter: {deadletter.Position{Stream: made, Sequence: 1}.String()}, deadletter.HeaderOrigin: {"1.1"}, deadletter.HeaderReplays: {"1"},
			deadletter.HeaderSeal: {deadletter.Seal{}.Mark("replay", deadletter.Position{Stream: made, Sequence: 1}.String(), "0", "1.1", "1", "", "false", "false", `{"user_id":"eve"}`)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.letters(q, 1)
				a := s.applier(nil)
				s.forge(q, `{"user_id":"eve"}`, h)
				s.Await(time.Minute, "drained", func() bool { return s.backlog(q) == 0 })
				result := s.replayed(q, ReplayConfig{Wait: true})
				a.mu.Lock()
				defer a.mu.Unlock()
				if result.Replayed != 1 || result.Delivered != 1 || a.applied[deadletter.Position{Stream: made, Sequence: 1}.String()] != 1 || len(a.applied) != 2 {
					t.Errorf("got %+v; applied %v", result, a.applied)
				}
			})
		})
	}
}

// No header of a producer turns an event into anything but an ordinary one, nor does a part of a
// replay on another event.
func TestForgedHeadersMeanNothing(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 1)
		key, err := s.store(q).LoadSeal(t.Context())
		s.Must(err)
		true1 := s.cutShort(q, deadletter.Position{Stream: made, Sequence: 1})
		if p := deadletter.ReadSealed(true1.Header, true1.Data, key); p == nil || p.Run != "cut short" || p.Letter.Compare(deadletter.Position{Stream: made, Sequence: 1}) != 0 {
			t.Fatalf("the metadata of a replay is %+v", p)
		}
		for name := range (&deadletter.ReplayInfo{Letter: aged(1), Published: made, Forced: true, Untracked: true, History: []string{"x"}}).Header() {
			if p := deadletter.ReadSealed(nats.Header{name: {"1"}}, true1.Data, key); p != nil {
				t.Errorf("%s alone makes a replay: %+v", name, p)
			}
		}
		for name, other := range map[string]string{
			deadletter.HeaderLetter: deadletter.Position{Stream: made, Sequence: 2}.String(), deadletter.HeaderLetterID: "2", deadletter.HeaderOrigin: deadletter.Position{Stream: made, Sequence: 2}.String(), deadletter.HeaderReplays: "7",
			deadletter.HeaderRun: "mine", deadletter.HeaderForced: "true", deadletter.HeaderUntracked: "", deadletter.HeaderSeal: "x",
		} {
			h := maps.Clone(true1.Header)
			if h.Set(name, other); name == deadletter.HeaderUntracked {
				h.Del(name) // it is set: sim's letters are untracked until a worker stores one
				h.Set(deadletter.HeaderForced, "true")
			}
			if p := deadletter.ReadSealed(h, true1.Data, key); p != nil {
				t.Errorf("trusted with another %s: %+v", name, p)
			}
		}
		if p := deadletter.ReadSealed(true1.Header, []byte(`{"user_id":"eve"}`), key); p != nil {
			t.Errorf("another event is trusted: %+v", p)
		}
		if p := deadletter.ReadSealed(true1.Header, true1.Data, nil); p != nil {
			t.Errorf("trusted without a secret: %+v", p)
		}
	})
}

// What was stored under a replay's message id is checked before the letter is deleted.
func TestReplayLooksAtTheCopy(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 3)
		key, err := s.store(q).LoadSeal(t.Context())
		s.Must(err)
		s.cutShort(q, deadletter.Position{Stream: made, Sequence: 1})
		for _, n := range []uint64{2, 3} { // of 3 only the id is left
			s.forge(q, `{"user_id":"eve"}`, nats.Header{nats.MsgIdHdr: {key.ReplayID(deadletter.Position{Stream: made, Sequence: n})}})
		}
		stream, err := q.API().JetStream.Stream(t.Context(), q.Topology().StreamName())
		s.Must(err)
		s.Must(stream.DeleteMsg(t.Context(), 3))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		selection := s.selected(q, Filter{}, SelectConfig{})
		result, err := New(q).Replay(ctx, selection, ReplayConfig{})
		s.Must(err)
		if result.Already != 1 || result.Skipped != 2 || result.Skips[string(errOtherEvent)] != 2 || s.dead(q) != 2 {
			t.Errorf("got %+v, and %d letters are left", result, s.dead(q))
		}
		time.Sleep(2*time.Minute + time.Second)
		s.applier(nil)
		if result := s.replayed(q, ReplayConfig{Wait: true}); result.Delivered != 2 || s.dead(q) != 0 {
			t.Errorf("later: got %+v, and %d letters are left", result, s.dead(q))
		}
	})
}

// Anything but a worker's record on an outcome's subject is no outcome: a producer can make the
// server write its acknowledgement there. That stops no replay, and the true outcome replaces it.
func TestForgedVerdicts(t *testing.T) {
	for _, text := range []string{
		`{"stream":"USERPILOT_IDENTIFY","seq":7}`, "", "?", `{"outcome":"delivered"}`, `{"letter":"1.1","outcome":"delivered","id":1}`,
		fmt.Sprintf(`{"letter":%q,"outcome":"sold"}`, deadletter.Position{Stream: made, Sequence: 1}),
	} {
		t.Run(text, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.letters(q, 1)
				_, err := q.API().JetStream.Publish(t.Context(), deadletter.OutcomeSubject(q.Topology(), deadletter.Position{Stream: made, Sequence: 1}), []byte(text))
				s.Must(err)
				a := s.applier(nil)
				if result := s.replayed(q, ReplayConfig{Wait: true}); result.Delivered != 1 || a.applied[deadletter.Position{Stream: made, Sequence: 1}.String()] != 1 {
					t.Errorf("got %+v", result)
				}
				if found, _, err := s.store(q).OutcomeOf(t.Context(), deadletter.Position{Stream: made, Sequence: 1}); !found || err != nil {
					t.Errorf("it has an outcome: %t (%v)", found, err)
				}
			})
		})
	}
}

// All replicas and people share one secret, and it persists: if damaged or deleted, it is restored.
func TestSeal(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		replicas := []*queue.Queue{s.queue(nil), s.queue(nil), s.queue(nil)}
		secrets := make(chan string, len(replicas))
		for _, q := range replicas {
			go func() {
				key, err := s.store(q).LoadSeal(t.Context())
				if err != nil {
					t.Error(err)
				}
				secrets <- string(key)
			}()
		}
		first := queuetest.Receive(s, "made", secrets)
		if second, third := queuetest.Receive(s, "made", secrets), queuetest.Receive(s, "made", secrets); first != second || first != third || len(first) != deadletter.SealBytes {
			t.Fatal("the secrets differ")
		}
		q := replicas[0]
		for _, damage := range []string{`{"stream":"USERPILOT_IDENTIFY","seq":7}`, "", base64.RawURLEncoding.EncodeToString([]byte("short"))} {
			_, err := q.API().JetStream.Publish(t.Context(), q.API().KeySubject(deadletter.SealKey), []byte(damage))
			s.Must(err)
			if key, err := s.store(q).LoadSeal(t.Context()); string(key) != first || err != nil {
				t.Errorf("after %q the secret differs (%v)", damage, err)
			}
		}
		if key, err := s.store(s.queue(nil)).LoadSeal(t.Context()); string(key) != first || err != nil {
			t.Errorf("the secret of others differs (%v)", err)
		}
	})
}
