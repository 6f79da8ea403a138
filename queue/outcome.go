package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Outcome is what became of a replayed event.
type Outcome string

// The outcomes of a replayed event.
const (
	OutcomeDelivered  Outcome = "delivered"  // Userpilot has it
	OutcomeSuperseded Outcome = "superseded" // newer events had set all that it sets: no call was made
	OutcomeDead       Outcome = "dead"       // it died again
	OutcomePurged     Outcome = "purged"     // it was erased with all that is known of its user
)

func (o Outcome) known() bool {
	switch o {
	case OutcomeDelivered, OutcomeSuperseded, OutcomeDead, OutcomePurged:
		return true
	}
	return false
}

// Verdict is what a worker writes into the audit trail before a replayed event leaves the work
// stream: once for each dead letter that was replayed.
type Verdict struct {
	Run     string    `json:"run"`    // of the replay
	Letter  Age       `json:"letter"` // that was replayed
	ID      uint64    `json:"id"`     // of the letter
	Outcome Outcome   `json:"outcome"`
	At      time.Time `json:"at"`
	Replays int       `json:"replays"`
	Next    string    `json:"next,omitempty"` // the new dead letter's name, if it died again
}

// outcomeTTL is how long a verdict is kept: longer than a dead letter, whose replay could be
// repeated for so long.
const outcomeTTL = 2 * deadLetterRetention

func (t Topology) outcomeSubject(letter Age) string {
	return t.auditSubject("verdict", letter.String())
}

// Judged reports whether a replayed event has its verdict already: then it is a second copy, or the
// settlement was cut short, and nothing is left to do but to settle it. It blocks for a round trip
// where the event is a replay.
func (c *Claim) HasOutcome(ctx context.Context, d Delivery) (bool, error) {
	if d.Past == nil || d.Past.Letter.IsZero() {
		return false, nil
	}
	judged, _, err := c.q.outcomeOf(ctx, d.Past.Letter)
	return judged, err
}

// judged reports whether a letter has a verdict, and the sequence of what lies in its place.
func (q *Queue) outcomeOf(ctx context.Context, letter Age) (judged bool, sequence uint64, err error) {
	subject := q.topology.outcomeSubject(letter)
	m, err := q.readLeader(ctx, q.topology.AuditStreamName(), lastBySubject{subject})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, fmt.Errorf("read the verdict on a replay: %w", err)
	}
	_, judged = q.topology.readOutcome(subject, m.Data)
	return judged, m.Sequence, nil
}

// Judge writes down what became of a replayed event, and blocks until the server has it on disk.
// For other events it does nothing. A verdict that is there already stands.
func (c *Claim) RecordOutcome(ctx context.Context, d Delivery, outcome Outcome) error {
	if d.Past == nil || d.Past.Letter.IsZero() {
		return nil
	}
	next := ""
	if outcome == OutcomeDead {
		next = c.place(d).String()
	}
	m, err := c.q.outcomeRecord(d.Past, outcome, next)
	if err != nil {
		return err
	}
	for before := uint64(0); ; {
		_, err := c.q.store(ctx, c.q.topology.toAudit("verdict"), m, jetstream.WithExpectLastSequencePerSubject(before))
		if err == nil {
			return nil
		}
		if !isWrongRevision(err) {
			return fmt.Errorf("write the verdict on a replay: %w", err)
		}
		judged, revision, err := c.q.outcomeOf(ctx, d.Past.Letter)
		if judged || err != nil {
			return err // else it is no verdict: it is replaced
		}
		before = revision
	}
}

// verdict is the record of what became of a replayed event. next is the name of its next dead
// letter. The server's clock must have been read.
func (q *Queue) outcomeRecord(past *Past, outcome Outcome, next string) (*nats.Msg, error) {
	text, err := json.Marshal(Verdict{
		Run: past.Run, Letter: past.Letter, ID: past.ID, Outcome: outcome, At: q.clock.now().UTC(), Replays: past.Replays, Next: next,
	})
	m := nats.NewMsg(q.topology.outcomeSubject(past.Letter))
	m.Header.Set(jetstream.MsgTTLHeader, outcomeTTL.String())
	m.Data = text
	return m, err
}
