package inspector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// ActionKind is an operation on dead letters.
type ActionKind string

// The kinds of actions.
const (
	ActionReplay  ActionKind = "replay"
	ActionDiscard ActionKind = "discard"
	ActionPurge   ActionKind = "purge"
)

// Action is one operation on dead letters, as recorded in the audit trail: once before anything
// changes, and again when it ends. A replay and a discard also record their counts while they run.
type Action struct {
	Run  string     `json:"run"` // names the action in the audit trail
	Kind ActionKind `json:"kind"`
	By   string     `json:"by,omitempty"`   // the operator
	Host string     `json:"host,omitempty"` // the operator's machine

	// Begun and Ended are the server's times. Ended is zero if the action has not ended, or was
	// killed.
	Begun time.Time `json:"begun,omitzero"`
	Ended time.Time `json:"ended,omitzero"`

	// Selection is the filter as text; for a purge, the user. Users appear as a hash.
	Selection string         `json:"selection,omitempty"`
	Edit      string         `json:"edit,omitempty"`  // [ReplayConfig.EditText]
	Note      string         `json:"note,omitempty"`  // [DiscardConfig.Note]
	Rate      ratelimit.Rate `json:"rate,omitzero"`   // [ReplayConfig.Rate]
	Force     bool           `json:"force,omitempty"` // [SelectConfig.Force]

	// Counts are the result's counts, by their JSON names. If the action has not ended, they are
	// some seconds old, and older if it had run for long.
	Counts map[string]uint64 `json:"counts,omitempty"`
	// Outcome is "done", or begins with "stopped", "canary died" or "failed". It is empty until the
	// action ends.
	Outcome string `json:"outcome,omitempty"`
}

func begunSubject(t queue.Topology, run string) string {
	return deadletter.AuditSubject(t, "action", run, "begun")
}
func progressSubject(t queue.Topology, run string) string {
	return deadletter.AuditSubject(t, "action", run, "progress")
}
func endedSubject(t queue.Topology, run string) string {
	return deadletter.AuditSubject(t, "action", run, "ended")
}

// originalSubject is where the audit trail keeps a letter's body from before an edit.
func originalSubject(t queue.Topology, letter deadletter.Position) string {
	return deadletter.AuditSubject(t, "original", letter.String())
}

// begin assigns the action its run id and records that it is about to start. After an error the
// caller must change nothing.
func (i *Inspector) begin(ctx context.Context, a *Action) error {
	a.Run = nuid.Next()
	if err := jsapi.Stopped(ctx, i.recordAction(ctx, jsapi.FirstTimeout, begunSubject(i.topology, a.Run), a)); err != nil {
		return fmt.Errorf("record the action in the audit trail (nothing was done): %w", err)
	}
	return nil
}

// The counts of a running action are recorded after a second, then less and less often, since the
// records are kept for a year. So a run of ten hours makes some two hundred, and one that is killed
// loses the counts of its last twentieth.
const (
	minRecordInterval   = time.Second
	recordIntervalShare = 20
)

// recordProgress records an action's counts as they grow, until stop is called: if the process is
// killed, the history has them. A failure is ignored, because the end of the action is recorded
// too.
func (i *Inspector) recordProgress(ctx context.Context, a Action, counts func() map[string]uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		begun := time.Now()
		a.Counts = counts()
		for {
			jsapi.Pause(ctx, max(minRecordInterval, time.Since(begun)/recordIntervalShare))
			if ctx.Err() != nil {
				return
			}
			before := a.Counts
			if a.Counts = counts(); maps.Equal(a.Counts, before) {
				continue
			}
			if text, err := json.Marshal(a); err == nil {
				brief, done := context.WithTimeout(ctx, jsapi.CallTimeout)
				_, _ = i.api.Store(brief, i.topology.AuditStreamName(), deadletter.ToRecord(i.topology, "action"), &nats.Msg{Subject: progressSubject(i.topology, a.Run), Data: text})
				done()
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// endTimeout limits how long recording the end of an action may take.
const endTimeout = 2 * jsapi.CallTimeout

// end records how an action ended, even if ctx is done, and joins a failure to do so to err.
func (i *Inspector) end(ctx context.Context, a *Action, counts map[string]uint64, err error) error {
	a.Counts, a.Outcome = counts, outcome(ctx, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if unrecorded := i.recordAction(ctx, endTimeout, endedSubject(i.topology, a.Run), a); unrecorded != nil {
		return errors.Join(err, fmt.Errorf("record the outcome of %s %s in the audit trail: %w", a.Kind, a.Run, unrecorded))
	}
	return err
}

// outcome is how the audit trail describes an error.
func outcome(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, ErrCanaryDied):
		return "canary died"
	case ctx.Err() != nil:
		return "stopped: " + jsapi.Clean(context.Cause(ctx).Error())
	}
	return "failed: " + jsapi.Clean(err.Error())
}

func (i *Inspector) recordAction(ctx context.Context, patience time.Duration, subject string, a *Action) error {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return i.audit(ctx, patience, &nats.Msg{Subject: subject, Data: text})
}

// audit writes a message to the audit trail, on its own subject and only once, however often it is
// retried. It blocks until the server has it on disk.
func (i *Inspector) audit(ctx context.Context, patience time.Duration, m *nats.Msg) error {
	kind, _, _ := strings.Cut(strings.TrimPrefix(m.Subject, deadletter.AuditSubject(i.topology, "")), ".")
	right := deadletter.ToRecord(i.topology, kind)
	err := jsapi.Retry(ctx, patience, func(ctx context.Context) error {
		brief, cancel := context.WithTimeout(ctx, jsapi.CallTimeout)
		defer cancel()
		_, err := i.api.Store(brief, i.topology.AuditStreamName(), right, m, jetstream.WithExpectLastSequencePerSubject(0))
		return jsapi.AsNoReply(ctx, right.Subject, err)
	})
	switch {
	case err == nil || jsapi.IsWrongRevision(err):
		return nil
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("%s, for %s: %w", i.topology.AuditStreamName(), m.Subject, queue.ErrNoStream)
	}
	if refused, ok := errors.AsType[*jetstream.APIError](err); ok {
		return fmt.Errorf("%s: %w", i.topology.AuditStreamName(), jsapi.Refusal(refused))
	}
	return err
}
