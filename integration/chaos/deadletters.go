package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// letter is a dead letter, as far as it is judged.
type letter struct{ reason, status, sequence, body string }

// readLetters gives every dead letter to judge.
func readLetters(ctx context.Context, js jetstream.JetStream, judge func(letter)) error {
	stream, err := js.Stream(ctx, queue.Topology{}.DeadStreamName())
	if err != nil {
		return fmt.Errorf("read the dead letters: %w", err)
	}
	state := stream.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read dead letter %d: %w", seq, err)
		}
		judge(letter{
			reason: m.Header.Get("Dead-Reason"), status: m.Header.Get("Dead-Status"),
			sequence: m.Header.Get("Dead-Sequence"), body: string(m.Data),
		})
	}
	return nil
}

// bury judges one dead letter.
func (j *judge) bury(l letter) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sum.letters++
	doom, reason := j.poison[l.body], "rejected"
	if doom == nil {
		doom, reason = j.invalid[l.body], "invalid"
	}
	switch {
	case doom == nil && isEcho(l.body) && l.reason == "invalid":
		return
	case doom == nil:
		j.accuse(j.whose(l, fmt.Sprintf("a dead letter that nobody had to expect (%s, status %s): %.300s", l.reason, l.status, l.body)))
		return
	case l.reason != reason || reason == "rejected" && l.status != "422":
		j.accuse(j.whose(l, fmt.Sprintf("a dead letter for the reason %s (status %s), want %s", l.reason, l.status, reason)))
	case slices.Contains(doom.buried, l.sequence), len(doom.buried) > 0 && !doom.again:
		j.accuse(j.whose(l, fmt.Sprintf("a second dead letter of event %s, the first was of %v", l.sequence, doom.buried)))
	}
	doom.buried = append(doom.buried, l.sequence)
}

// whose tells the story of the user whose dead letter it is, if it is one's.
func (j *judge) whose(l letter, wrong string) string {
	x, numbers, err := parse([]byte(l.body))
	u := j.users[x.User]
	if err != nil || u == nil || len(numbers) == 0 {
		return wrong
	}
	return j.story(u, fmt.Sprintf("event %d: %s", numbers[0], wrong))
}

// buried says that all dead letters have been told: each that was due must be among them.
func (j *judge) buried() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range j.poison {
		if d.acked && len(d.buried) == 0 {
			j.accuse(j.story(j.users[d.user], fmt.Sprintf("event %d has no dead letter, and the API refuses it", d.n)))
		}
	}
	for body, d := range j.invalid {
		if d.acked && len(d.buried) == 0 {
			j.accuse(fmt.Sprintf("no dead letter of what is no identify: %s", body))
		}
	}
}
