package inspector

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// History reads the operations on dead letters of the last year, newest last. It needs only the
// permission to publish to $JS.API.DIRECT.GET.<stream>_AUDIT.
func (i *Inspector) History(ctx context.Context) ([]Action, error) {
	actions := map[string]Action{}
	var order []string
	for m, err := range i.auditTrail(ctx, "action.*.*", 1) {
		if err != nil {
			return nil, fmt.Errorf("read the audit trail: %w", err)
		}
		run, event, _ := strings.Cut(strings.TrimPrefix(m.Header.Get(jetstream.SubjectHeader), deadletter.AuditSubject(i.topology, "action", "")), ".")
		before, known := actions[run]
		if !known {
			order = append(order, run)
		}
		actions[run] = before.learn(run, event, m)
	}
	history := make([]Action, 0, len(order))
	for _, run := range order {
		history = append(history, actions[run])
	}
	slices.SortStableFunc(history, func(a, b Action) int { return a.Begun.Compare(b.Begun) })
	return history, nil
}

// learn merges one record of an action into a. Anyone with the permission may have written the
// record, so unreadable parts are left out.
func (a Action) learn(run, event string, m *nats.Msg) Action {
	at, _ := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
	begun := a.Begun
	if event == "progress" && !a.Ended.IsZero() {
		return a // it was stored late
	}
	a.Counts = nil // a count that is zero is left out of a record
	if err := json.Unmarshal(m.Data, &a); err != nil {
		a.Outcome = "unknown: the record cannot be read"
	}
	a.Run, a.Begun = run, begun
	if event == "ended" {
		a.Ended = at
	}
	if begun.IsZero() {
		a.Begun = at
	}
	return a
}

// auditBatch is how many audit trail records are read at a time.
const auditBatch = 1000

// auditTrail reads the audit trail's records on some subjects, from a sequence on, in order. It
// stops at the first error.
func (i *Inspector) auditTrail(ctx context.Context, subjects string, from uint64) iter.Seq2[*nats.Msg, error] {
	return func(yield func(*nats.Msg, error) bool) {
		for from > 0 {
			request := jsapi.DirectRequest{Sequence: from, Next: deadletter.AuditSubject(i.topology, subjects), Batch: auditBatch, MaxBytes: jsapi.ScanBytes}
			end, err := i.api.Direct(ctx, i.topology.AuditStreamName(), request, func(m *nats.Msg) bool { return yield(m, nil) })
			if err == nil {
				from, err = jsapi.NextBatch(end)
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}
}
