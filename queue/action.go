package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// ActionKind is what was done with dead letters.
type ActionKind string

// The kinds of actions.
const (
	ActionReplay  ActionKind = "replay"
	ActionDiscard ActionKind = "discard"
	ActionPurge   ActionKind = "purge"
)

// Action is one thing that somebody did with dead letters, as the audit trail has it. It is
// recorded before anything changes, and once more at its end.
type Action struct {
	Run  string     `json:"run"`
	Kind ActionKind `json:"kind"`
	By   string     `json:"by,omitempty"`
	Host string     `json:"host,omitempty"`

	// Begun and Ended are the server's times. Ended is zero if the action has not ended, or was
	// killed.
	Begun time.Time `json:"begun,omitzero"`
	Ended time.Time `json:"ended,omitzero"`

	// Selection is the filter in words; of a purge, the user. Users are told by a hash.
	Selection string `json:"selection,omitempty"`
	Edit      string `json:"edit,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Rate      Rate   `json:"rate,omitzero"`
	Force     bool   `json:"force,omitempty"`

	// Counts are those of the result, by their names in JSON.
	Counts map[string]uint64 `json:"counts,omitempty"`
	// Outcome is "done", or begins with "stopped", "canary died" or "failed". It is empty as long
	// as the action has not ended.
	Outcome string `json:"outcome,omitempty"`
}

func (t Topology) begunSubject(run string) string { return t.auditSubject("action", run, "begun") }
func (t Topology) endedSubject(run string) string { return t.auditSubject("action", run, "ended") }

// originalSubject is where a letter's body is kept from before an edit.
func (t Topology) originalSubject(letter Age) string {
	return t.auditSubject("original", letter.String())
}

// begin records that an action is about to happen, and names it. Where that is impossible nothing
// may be changed.
func (q *Queue) begin(ctx context.Context, a *Action) error {
	a.Run = nuid.Next()
	if err := stopped(ctx, q.recordAction(ctx, firstTimeout, q.topology.begunSubject(a.Run), a)); err != nil {
		return fmt.Errorf("record in the audit trail what is about to be done (nothing was): %w", err)
	}
	return nil
}

// endPatience is how long the end of an action may take to be recorded.
const endPatience = 2 * callTimeout

// end records how an action has ended, also where ctx has, and adds to err if that is impossible.
func (q *Queue) end(ctx context.Context, a *Action, counts map[string]uint64, err error) error {
	a.Counts, a.Outcome = counts, outcome(ctx, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endPatience)
	defer cancel()
	if unrecorded := q.recordAction(ctx, endPatience, q.topology.endedSubject(a.Run), a); unrecorded != nil {
		return errors.Join(err, fmt.Errorf("record in the audit trail how %s %s has ended: %w", a.Kind, a.Run, unrecorded))
	}
	return err
}

// outcome is how the audit trail tells an error.
func outcome(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, ErrCanaryDied):
		return "canary died"
	case ctx.Err() != nil:
		return "stopped: " + clean(context.Cause(ctx).Error())
	}
	return "failed: " + clean(err.Error())
}

func (q *Queue) recordAction(ctx context.Context, patience time.Duration, subject string, a *Action) error {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return q.audit(ctx, patience, &nats.Msg{Subject: subject, Data: text})
}

// audit writes a message into the audit trail, on a subject of its own, once however often it is
// tried. It blocks until the server has it on disk.
func (q *Queue) audit(ctx context.Context, patience time.Duration, m *nats.Msg) error {
	kind, _, _ := strings.Cut(strings.TrimPrefix(m.Subject, q.topology.auditSubject("")), ".")
	right := q.topology.toAudit(kind)
	err := retry(ctx, patience, func(ctx context.Context) error {
		brief, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		_, err := q.store(brief, right, m, jetstream.WithExpectLastSequencePerSubject(0))
		return asNoReply(ctx, right.Subject, err)
	})
	switch {
	case err == nil || isWrongRevision(err):
		return nil
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("no stream takes %s: start a worker, or run identify-worker setup, to create %s", m.Subject, q.topology.AuditStreamName())
	}
	if refused, ok := errors.AsType[*jetstream.APIError](err); ok {
		return fmt.Errorf("%s: %w", q.topology.AuditStreamName(), refusal(refused))
	}
	return err
}
