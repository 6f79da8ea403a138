package oracle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// doom is an event that must, or may, become a dead letter.
type doom struct {
	reason deadletter.Reason
	times  int  // how often it was published
	more   bool // it may have been stored more often
}

// MustDie records that an invalid event, built by the caller, is published and must become a dead
// letter. Each call stands for one publication and one dead letter. It returns the body.
func (o *Oracle) MustDie(body []byte, reason deadletter.Reason) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.doom(body, reason).times++
	if i, err := Parse(body); err == nil && reason != deadletter.Invalid {
		o.strangers[i.User] = true
	}
	return body
}

// MayDie records that an event may be stored more often than is certain, and may then have as many
// dead letters. A body that is not known yet is taken for one that is no identify.
func (o *Oracle) MayDie(body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.doom(body, deadletter.Invalid).more = true
}

// doom returns the doom of a body, and makes it if there is none. o.mu must be held.
func (o *Oracle) doom(body []byte, reason deadletter.Reason) *doom {
	d := o.dooms[string(body)]
	if d == nil {
		d = &doom{reason: reason}
		o.dooms[string(body)] = d
	}
	return d
}

// Letters reads a whole dead-letter stream.
func Letters(ctx context.Context, js jetstream.JetStream, name string) (letters []*jetstream.RawStreamMsg, err error) {
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read the dead letters: %w", err)
	}
	state := stream.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // the stream was full, or it has been replayed
		}
		if err != nil {
			return nil, fmt.Errorf("read dead letter %d: %w", seq, err)
		}
		letters = append(letters, m)
	}
	return letters, nil
}

// Dead judges all dead letters of a run that has drained. They must be exactly those of the doomed
// events, byte for byte, one for each publication and with the right reason.
func (o *Oracle) Dead(letters []*jetstream.RawStreamMsg) (found []Finding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	buried := map[string][]string{} // the sequences of each body
	for _, l := range letters {
		body, sequence := string(l.Data), l.Header.Get("Dead-Sequence")
		if wrong := o.dooms[body].check(l, sequence, buried[body]); wrong != "" {
			found = append(found, o.about(l.Data, wrong))
		}
		buried[body] = append(buried[body], sequence)
	}
	for _, body := range slices.Sorted(maps.Keys(o.dooms)) {
		if n, want := len(buried[body]), o.dooms[body].times; n < want {
			found = append(found, o.about([]byte(body), fmt.Sprintf("%d dead letters, want %d", n, want)))
		}
	}
	return found
}

// check returns what is wrong with a dead letter, given the others of the same body that came
// before.
func (d *doom) check(l *jetstream.RawStreamMsg, sequence string, others []string) string {
	reason, status := deadletter.Reason(l.Header.Get("Dead-Reason")), l.Header.Get("Dead-Status")
	switch {
	case d == nil:
		return fmt.Sprintf("an unexpected dead letter (%s, status %s)", reason, status)
	case reason != d.reason, reason == deadletter.Rejected && status != "422":
		return fmt.Sprintf("a dead letter with the reason %s (status %s), want %s", reason, status, d.reason)
	case slices.Contains(others, sequence), len(others) >= d.times && !d.more:
		return fmt.Sprintf("one dead letter too many, of event %s; there are already those of %v", sequence, others)
	}
	return ""
}

// about makes a finding, and names the event's user if the oracle made the event. o.mu must be held.
func (o *Oracle) about(body []byte, wrong string) Finding {
	if i, err := Parse(body); err == nil && o.users[i.User] != nil && len(i.Numbers) > 0 {
		return Finding{i.User, fmt.Sprintf("event %d: %s", i.Numbers[0], wrong)}
	}
	return Finding{What: fmt.Sprintf("%s: %.300q", wrong, body)}
}
