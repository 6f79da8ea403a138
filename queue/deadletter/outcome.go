package deadletter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Outcome is the result of a replay.
type Outcome string

// The outcomes of a replay.
const (
	OutcomeDelivered  Outcome = "delivered"  // Userpilot has accepted it
	OutcomeSuperseded Outcome = "superseded" // newer events had set all its properties: no call was made
	OutcomeDead       Outcome = "dead"       // it became a dead letter again
	OutcomePurged     Outcome = "purged"     // it was erased with all data of its user
)

func (o Outcome) known() bool {
	switch o {
	case OutcomeDelivered, OutcomeSuperseded, OutcomeDead, OutcomePurged:
		return true
	}
	return false
}

// ReplayOutcome is the record of a replay's outcome. A worker writes it into the audit trail before
// the replayed event leaves the work stream, once per replayed dead letter.
type ReplayOutcome struct {
	Run     string    `json:"run"`    // of the replay
	Letter  Position  `json:"letter"` // that was replayed
	ID      uint64    `json:"id"`     // of the letter
	Outcome Outcome   `json:"outcome"`
	At      time.Time `json:"at"`             // by the server's clock
	Replays int       `json:"replays"`        // how often it has been replayed, including this time
	Next    string    `json:"next,omitempty"` // the new dead letter's name, if it died again
}

// outcomeTTL is how long an outcome is kept: longer than a dead letter, whose replay could be
// repeated for that long.
const outcomeTTL = 2 * queue.DeadLetterRetention

// OutcomeSubject is the subject of the audit trail that holds the outcome of a letter's replay.
func OutcomeSubject(t queue.Topology, letter Position) string {
	return AuditSubject(t, "verdict", letter.String())
}

// HasOutcome reports whether a replayed event has its outcome already. Then it is a second copy, or
// its settlement was interrupted, and all that remains is to settle it. HasOutcome blocks for a
// round trip if the event is a replay.
func (s *Store) HasOutcome(ctx context.Context, e Event) (bool, error) {
	if e.Replay == nil || e.Replay.Letter.IsZero() {
		return false, nil
	}
	found, _, err := s.OutcomeOf(ctx, e.Replay.Letter)
	return found, err
}

// OutcomeOf reports whether a letter's replay has an outcome, and the sequence of the message on
// its subject; 0 if there is none. It blocks for a round trip.
func (s *Store) OutcomeOf(ctx context.Context, letter Position) (found bool, sequence uint64, err error) {
	subject := OutcomeSubject(s.topology, letter)
	m, err := s.api.ReadLast(ctx, s.topology.AuditStreamName(), subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, fmt.Errorf("read the outcome of a replay: %w", err)
	}
	_, found = ReadOutcome(s.topology, subject, m.Data)
	return found, m.Sequence, nil
}

// RecordOutcome stores the outcome of a replayed event, and blocks until the server has it on disk.
// It does nothing for other events. An existing outcome is kept.
func (s *Store) RecordOutcome(ctx context.Context, e Event, outcome Outcome) error {
	if e.Replay == nil || e.Replay.Letter.IsZero() {
		return nil
	}
	next := ""
	if outcome == OutcomeDead {
		next = e.Name.String()
	}
	m, err := s.NewOutcome(e.Replay, outcome, next)
	if err != nil {
		return err
	}
	for before := uint64(0); ; {
		_, err := s.api.Store(ctx, s.topology.AuditStreamName(), ToRecord(s.topology, "verdict"), m, jetstream.WithExpectLastSequencePerSubject(before))
		if err == nil {
			return nil
		}
		if !jsapi.IsWrongRevision(err) {
			return fmt.Errorf("store the outcome of a replay: %w", err)
		}
		found, revision, err := s.OutcomeOf(ctx, e.Replay.Letter)
		if found || err != nil {
			return err // else the message is no outcome: replace it
		}
		before = revision
	}
}

// NewOutcome encodes the outcome of a replayed event. next is the name of its next dead letter. The
// server's clock must have been read before.
func (s *Store) NewOutcome(past *ReplayInfo, outcome Outcome, next string) (*nats.Msg, error) {
	text, err := json.Marshal(ReplayOutcome{
		Run: past.Run, Letter: past.Letter, ID: past.ID, Outcome: outcome, At: s.api.Clock.Now().UTC(), Replays: past.Replays, Next: next,
	})
	m := nats.NewMsg(OutcomeSubject(s.topology, past.Letter))
	m.Header.Set(jetstream.MsgTTLHeader, outcomeTTL.String())
	m.Data = text
	return m, err
}

// ReadOutcome decodes a message of the audit trail. ok is false unless it is the record that a
// worker writes on this subject; anything else counts as no outcome.
func ReadOutcome(t queue.Topology, subject string, text []byte) (v ReplayOutcome, ok bool) {
	err := json.Unmarshal(text, &v)
	return v, err == nil && subject == OutcomeSubject(t, v.Letter) && v.Outcome.known()
}
