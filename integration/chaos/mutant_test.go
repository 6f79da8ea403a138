package main

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/identify-worker/identify-worker/integration/overlay"
)

// mutant is the product with a planted bug, one that its authors might have made. The bug is laid
// over the sources while the program is built: the product has no switches for tests.
type mutant struct {
	name     string
	schedule string // shows the bug; the program itself passes it
	edits    []edit
}

type edit overlay.Edit

// mutants are bugs that the campaign must find.
func mutants() []mutant {
	return []mutant{
		{"acknowledged before the call", "kills", []edit{
			{"worker/call.go", "\tc.stage.Store(connecting)\n", "\tc.stage.Store(connecting)\n\tc.lane.partition.claim.AckNow(c.deliveries)\n"},
			{"queue/fleet/claim.go", "// Settle removes one", "func (c *Claim) AckNow(ds []Delivery) {\n\tfor _, d := range ds {\n\t\t_ = c.q.api.NATS.Publish(d.reply(), []byte(\"+ACK\"))\n\t}\n}\n\n// Settle removes one"},
		}},
		{"the next call does not wait for the settlement", "unconfirmed", []edit{
			{"queue/fleet/settlement.go", "a.waiting = append(a.waiting, settlement{ds, done})", "a.waiting = append(a.waiting, settlement{ds, func(int) {}})\n\tgo done(len(ds))"},
		}},
		{"a replica leaves its own orphaned consumers alone", "cuts", []edit{
			{"queue/fleet/reconciler.go", "case id == f.m.id && !f.holds(name):", "case id == \"\":"},
		}},
		{"a takeover reuses the dead replica's consumer", "kills", []edit{
			{"queue/fleet/reconciler.go", "\t\t\tif err := f.q.deleteConsumer(ctx, stream, name); err != nil {", "\t\t\tif id, _, _ := holder(f.q.topology, name); id != f.m.id {\n\t\t\t\treturn nil\n\t\t\t}\n\t\t\tif err := f.q.deleteConsumer(ctx, stream, name); err != nil {"},
			{"queue/fleet/reconciler.go", "\treturn f.q.api.WithPermissionCheck(ctx, func(ctx context.Context) error {\n\t\t_, err := stream.CreateConsumer(ctx, config)\n\t\treturn err\n\t}, toClaim(f.q.topology))", "\t_, err := stream.CreateConsumer(ctx, config)\n\tfor partition := range feed.claims {\n\t\tnames := stream.ConsumerNames(ctx)\n\t\tfor name := range names.Name() {\n\t\t\tif _, held, _ := holder(f.q.topology, name); err != nil && len(feed.claims) == 1 && held == partition {\n\t\t\t\tfeed.consumer, err = name, nil\n\t\t\t}\n\t\t}\n\t}\n\treturn err"},
			{"queue/fleet/feed.go", "if at.Consumer != f.next || at.Deliveries != 1 {", "if f.next = at.Consumer; false {"},
		}},
		{"a failed event is handed back with a delay", "failures", []edit{
			{"worker/call.go", "\tw.backOff(l, f.RetryAfter)\n}\n\n// searchAttempts", "\tl.partition.claim.Nak(c.deliveries)\n\tl.resendThrough = fleet.Extent{}\n\tl.drop(c.n())\n\tw.waiting.events -= c.n()\n\tw.advance(l)\n}\n\n// searchAttempts"},
			{"queue/fleet/claim.go", "// Settle removes one", "func (c *Claim) Nak(ds []Delivery) {\n\tfor _, d := range ds {\n\t\t_ = c.q.api.NATS.Publish(d.reply(), []byte(`-NAK {\"delay\": 300000000}`))\n\t}\n}\n\n// Settle removes one"},
			{"queue/fleet/feed.go", "at.Deliveries != 1 {", "false {"},
		}},
		{"a retry takes no token", "saturated", []edit{
			{"worker/call.go", "\tw.metrics.called(c.failure, c.took)", "\tif c.failure != nil {\n\t\t_, c.failure = w.config.Client.Attempt(c.lane.partition.claim.Context(), userpilot.Call{Body: body, Timeout: w.config.Timeout, Guard: c.lane.partition.claim.Valid})\n\t}\n\tw.metrics.called(c.failure, c.took)"},
		}},
		{"the ledger starts full in each process", "restarts", []edit{
			{"queue/ratelimit/ledger.go", "\tlost    atomic.Uint64\n", "\tlost    atomic.Uint64\n\tbegun   int\n"},
			{"queue/ratelimit/ledger.go", "\tfor ctx.Err() == nil {\n\t\tl.collect()\n", "\tif l.begun++; l.begun <= l.own.burst {\n\t\treturn Slot{}, nil\n\t}\n\tfor ctx.Err() == nil {\n\t\tl.collect()\n"},
		}},
		{"settled before the dead letter is stored", "kills", []edit{
			{"queue/deadletter/deadletter.go", "ack, err := s.api.Store(ctx, s.topology.DeadStreamName(), toBury(s.topology), msg, jetstream.WithExpectLastSequenceForSubject(0, letters))", "ack := &jetstream.PubAck{}\n\ttime.AfterFunc(100*time.Millisecond, func() { _, _ = s.api.JetStream.PublishMsg(context.Background(), msg, jetstream.WithExpectLastSequenceForSubject(0, letters)) })"},
		}},
		{"a 429 counts as an attempt", "429", []edit{
			{"worker/call.go", "f.RetryAfter))\n\tw.advance(l)", "f.RetryAfter))\n\tif l.attempts++; l.attempts >= w.config.MaxAttempts {\n\t\tw.exhausted(c, retry, f)\n\t\treturn\n\t}\n\tw.advance(l)"},
		}},
		{"the other replicas ignore a 429", "429", []edit{
			{"queue/ratelimit/cooldown.go", "c.extend(local)", "_ = local"},
		}},
		{"calls are merged across companies", "429", []edit{
			{"userpilot/merge.go", "e.sameCompany(next))", "e.companyName == next.companyName)"},
		}},
		{"a member that cannot renew its key goes on", "freezes", []edit{
			{"queue/fleet/validity.go", "if c.age() >= c.ttl*3/4 {", "if false {"},
			{"queue/fleet/validity.go", "return c.ttl - c.age() }", "return c.ttl }"},
		}},
		{"a merged call is not recorded in the journal", "kills", []edit{
			{"worker/call.go", "if claim := c.lane.partition.claim; c.needsJournal() {", "if claim := c.lane.partition.claim; false {"},
		}},
		{"a partition is released with calls in flight", "scale", []edit{
			{"worker/deliver.go", "for p.busy > 0 || p.leaving > 0 && lost != nil {", "for false {"},
		}},
		{"a wrong key makes dead letters", "keys", []edit{
			{"worker/verdict.go", "if status >= 200 && status < 500 {\n\t\treturn refused", "if status >= 200 && status < 500 {\n\t\treturn rejected"},
		}},
		{"a merged call without an answer grows", "growing", []edit{
			{"worker/lane.go", "case again > 1:", "case false:"},
		}},
		{"a merged call's last event is not waited for", "large", []edit{
			{"worker/lane_state.go", "case l.resendThrough != (fleet.Extent{}) && !p.claim.DeliveredThrough(l.resendThrough):", "case false:"},
		}},
		{"the journal of the last holder is not read", "large", []edit{
			{"queue/fleet/journal.go", "if record.Stream.Equal(created) {", "if false {"},
		}},
		{"a call that was cut off is repeated with its token", "saturated", []edit{
			{"worker/verdict.go", "case err == nil, ok && (failure.Sent || failure.Status != 0):", "case err == nil, ok && failure.Status != 0:"},
		}},
		{"two replicas may take the same slot", "saturated", []edit{
			{"queue/ratelimit/reserve.go", "b.revision, err = jsapi.CompareAndSet(ctx, r.kv, shardKey(b.shard), value, b.revision)", "b.revision, err = r.kv.Put(ctx, shardKey(b.shard), value)"},
		}},
		{"slots are too close together", "saturated", []edit{
			{"queue/ratelimit/reserve.go", "s.next = at.Add(p.schedule.every[i])", "s.next = at.Add(p.schedule.every[i] * 3 / 4)"},
		}},
		{"a partition is released with settlements in flight", "hand-overs", []edit{
			{"worker/deliver.go", "for p.busy > 0 || p.leaving > 0 && lost != nil {", "for p.busy > 0 {"},
		}},
		{"an event with a status header is taken for a status of the server", "hostile", []edit{
			{"queue/internal/jsapi/pull.go", "if strings.HasPrefix(m.Reply, \"$JS.ACK.\") {", "if strings.HasPrefix(m.Reply, \"$JS.ACK.\") && (len(m.Data) > 0 || m.Header.Get(\"Status\") == \"\") {"},
		}},
		{"a web page counts as a delivery", "pages", []edit{
			{"userpilot/answer.go", "\tif page {", "\tif page && false {"},
		}},
		{"backfill overtakes live events", "backfill", []edit{
			{"queue/fleet/feed.go", "if f.backfill && !f.awaitLive(at.Stream) {", "if f.backfill && f.isEnding() {"},
		}},
		{"late backfill overwrites newer properties", "backfill", []edit{
			{"worker/versions.go", "\treduced, ok, known := newer.Reduce(*x.event, x.origin(c).Position())", "\tif x.Backfill() {\n\t\treturn nil, true, true\n\t}\n\treduced, ok, known := newer.Reduce(*x.event, x.origin(c).Position())"},
		}},
		{"the version records are dropped while backfill waits", "backfill", []edit{
			{"queue/deadletter/backfill.go", "if waiting := err != nil || len(work.State.Subjects) > 0; waiting {", "if _ = work; err != nil {"},
		}},
		{"the log names a user", "failures", []edit{
			{"worker/archive.go", "slog.String(\"group\", death.Group))", "slog.String(\"group\", death.Group), slog.String(\"user\", l.user))"},
		}},
	}
}

// overlay writes the files with the bug and returns the flags that lay them over the sources.
func (m mutant) overlay(t *testing.T) []string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	flags, err := overlay.Write(root, t.TempDir(), m.edits)
	if err != nil {
		t.Fatal(err)
	}
	return flags
}

// build builds the programs with the bug.
func (m mutant) build(ctx context.Context, t *testing.T, server string) programs {
	t.Helper()
	p := programs{worker: filepath.Join(t.TempDir(), "identify-worker"), server: server}
	if err := goBuild(ctx, p.worker, workerPackage, m.overlay(t)...); err != nil {
		t.Fatal(err)
	}
	return p
}
