//go:build !noembed

package queue

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/userpilot"
)

// cutShort runs a replay of one letter that ends before the letter is deleted. It returns the
// published event.
func (s *sim) cutShort(q *Queue, letter Position) (stored *jetstream.RawStreamMsg) {
	s.t.Helper()
	key, err := s.store(q).readSeal(s.t.Context())
	s.must(err)
	p := q.NewPublisher(PublisherConfig{})
	for l, err := range NewInspector(q).DeadLetters(s.t.Context(), Filter{}) {
		s.must(err)
		if !l.Letter.same(letter) {
			continue
		}
		event, err := userpilot.Parse(l.Body)
		s.must(err)
		sent := outgoing{letter: l, event: event}
		result, err := p.publishEvent(s.t.Context(), event, append(sent.sealed(key, "cut short", false).options(l), WithMessageID(key.replayID(letter)))...)
		s.must(err)
		receipt, err := result.Wait(s.t.Context())
		s.must(err)
		stream, err := q.api.JetStream.Stream(s.t.Context(), q.topology.StreamName())
		s.must(err)
		stored, err = stream.GetMsg(s.t.Context(), receipt.Sequence)
		s.must(err)
	}
	s.must(p.Close(s.t.Context()))
	return stored
}

// forge publishes as a producer can.
func (s *sim) forge(q *Queue, body string, h nats.Header) {
	s.t.Helper()
	m := &nats.Msg{Subject: q.topology.Subject("eve"), Header: h, Data: []byte(body)}
	_, err := q.api.JetStream.PublishMsg(s.t.Context(), m)
	s.must(err)
}

// A producer who knows a letter's name cannot make a replay delete it unsent: neither by using the
// replay's message id, nor by making a worker record the outcome.
func TestForgedReplaysDeleteNoLetter(t *testing.T) {
	for name, h := range map[string]nats.Header{
		"a message id":     {nats.MsgIdHdr: {"replay." + Position{made, 1}.String()}},
		"a delivered copy": {headerLetter: {Position{made, 1}.String()}, headerLetterID: {"1"}, headerReplays: {"1"}, headerForced: {"1"}, headerRun: {"r"}},
		"with a seal": {
			headerLetter: {Position{made, 1}.String()}, headerOrigin: {"1.1"}, headerReplays: {"1"},
			headerSeal: {seal{}.mark("replay", Position{made, 1}.String(), "0", "1.1", "1", "", "false", "false", `{"user_id":"eve"}`)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.letters(q, 1)
				a := s.applier(nil)
				s.forge(q, `{"user_id":"eve"}`, h)
				s.await(time.Minute, "drained", func() bool { return s.backlog(q) == 0 })
				result := s.replayed(q, ReplayConfig{Wait: true})
				a.mu.Lock()
				defer a.mu.Unlock()
				if result.Replayed != 1 || result.Delivered != 1 || a.applied[Position{made, 1}.String()] != 1 || len(a.applied) != 2 {
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
		key, err := s.store(q).readSeal(t.Context())
		s.must(err)
		true1 := s.cutShort(q, Position{made, 1})
		if p := readSealed(true1.Header, true1.Data, key); p == nil || p.Run != "cut short" || p.Letter.Compare(Position{made, 1}) != 0 {
			t.Fatalf("the metadata of a replay is %+v", p)
		}
		for name := range (&ReplayInfo{Letter: aged(1), Published: made, Forced: true, Untracked: true, History: []string{"x"}}).header() {
			if p := readSealed(nats.Header{name: {"1"}}, true1.Data, key); p != nil {
				t.Errorf("%s alone makes a replay: %+v", name, p)
			}
		}
		for name, other := range map[string]string{
			headerLetter: Position{made, 2}.String(), headerLetterID: "2", headerOrigin: Position{made, 2}.String(), headerReplays: "7",
			headerRun: "mine", headerForced: "true", headerUntracked: "", headerSeal: "x",
		} {
			h := maps.Clone(true1.Header)
			if h.Set(name, other); name == headerUntracked {
				h.Del(name) // it is set: sim's letters are untracked until a worker stores one
				h.Set(headerForced, "true")
			}
			if p := readSealed(h, true1.Data, key); p != nil {
				t.Errorf("trusted with another %s: %+v", name, p)
			}
		}
		if p := readSealed(true1.Header, []byte(`{"user_id":"eve"}`), key); p != nil {
			t.Errorf("another event is trusted: %+v", p)
		}
		if p := readSealed(true1.Header, true1.Data, nil); p != nil {
			t.Errorf("trusted without a secret: %+v", p)
		}
	})
}

// What was stored under a replay's message id is checked before the letter is deleted.
func TestReplayLooksAtTheCopy(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 3)
		key, err := s.store(q).readSeal(t.Context())
		s.must(err)
		s.cutShort(q, Position{made, 1})
		for _, n := range []uint64{2, 3} { // of 3 only the id is left
			s.forge(q, `{"user_id":"eve"}`, nats.Header{nats.MsgIdHdr: {key.replayID(Position{made, n})}})
		}
		stream, err := q.api.JetStream.Stream(t.Context(), q.topology.StreamName())
		s.must(err)
		s.must(stream.DeleteMsg(t.Context(), 3))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		selection := s.selected(q, Filter{}, SelectConfig{})
		result, err := NewInspector(q).Replay(ctx, selection, ReplayConfig{})
		s.must(err)
		if result.Already != 1 || result.Skipped != 2 || result.Skips[string(errOtherEvent)] != 2 || s.dead(q) != 2 {
			t.Errorf("got %+v, and %d letters are left", result, s.dead(q))
		}
		time.Sleep(dedupeWindow + time.Second)
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
		fmt.Sprintf(`{"letter":%q,"outcome":"sold"}`, Position{made, 1}),
	} {
		t.Run(text, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.letters(q, 1)
				_, err := q.api.JetStream.Publish(t.Context(), outcomeSubject(q.topology, Position{made, 1}), []byte(text))
				s.must(err)
				a := s.applier(nil)
				if result := s.replayed(q, ReplayConfig{Wait: true}); result.Delivered != 1 || a.applied[Position{made, 1}.String()] != 1 {
					t.Errorf("got %+v", result)
				}
				if found, _, err := s.store(q).outcomeOf(t.Context(), Position{made, 1}); !found || err != nil {
					t.Errorf("it has an outcome: %t (%v)", found, err)
				}
			})
		})
	}
}

// All replicas and people share one secret, and it persists: if damaged or deleted, it is restored.
func TestSeal(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		replicas := []*Queue{s.queue(nil), s.queue(nil), s.queue(nil)}
		secrets := make(chan string, len(replicas))
		for _, q := range replicas {
			go func() {
				key, err := s.store(q).readSeal(t.Context())
				if err != nil {
					t.Error(err)
				}
				secrets <- string(key)
			}()
		}
		first := receive(s, "made", secrets)
		if second, third := receive(s, "made", secrets), receive(s, "made", secrets); first != second || first != third || len(first) != sealBytes {
			t.Fatal("the secrets differ")
		}
		q := replicas[0]
		for _, damage := range []string{`{"stream":"USERPILOT_IDENTIFY","seq":7}`, "", base64.RawURLEncoding.EncodeToString([]byte("short"))} {
			_, err := q.api.JetStream.Publish(t.Context(), q.api.KeySubject(sealKey), []byte(damage))
			s.must(err)
			if key, err := s.store(q).readSeal(t.Context()); string(key) != first || err != nil {
				t.Errorf("after %q the secret differs (%v)", damage, err)
			}
		}
		if key, err := s.store(s.queue(nil)).readSeal(t.Context()); string(key) != first || err != nil {
			t.Errorf("the secret of others differs (%v)", err)
		}
	})
}
