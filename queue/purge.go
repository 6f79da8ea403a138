package queue

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// PurgeConfig says who purges.
type PurgeConfig struct {
	By, Host string
	// DryRun counts what would be purged, and changes nothing.
	DryRun bool
	// Found is what a dry run for the same user has found: of the events that wait only those are read
	// that have come since. Nil reads all.
	Found *PurgeResult
}

// PurgeResult counts what was purged.
type PurgeResult struct {
	Run         string `json:"run,omitempty"` // names it in the audit trail; empty for a dry run
	Waiting     uint64 `json:"waiting"`       // events in the work stream
	DeadLetters uint64 `json:"dead_letters"`
	Originals   uint64 `json:"originals"` // bodies in the audit trail, from before an edit
	Newer       uint64 `json:"newer"`     // records of what newer events have set
	Recalled    uint64 `json:"recalled"`  // claims that replicas gave back, to forget what they had read ahead

	found *foundWaiting
}

// PurgeUser erases all that is stored of a user: dead letters, events that wait, what they were
// before an edit, and the record of what newer events have set. What is deleted is overwritten on
// disk. Events that producers publish meanwhile are not held up, and a replay that is under way can
// publish what it has just read: stop both first.
//
// It blocks until the workers have let go of what they had read ahead, for which they give the
// partitions back that the user's events waited in, finish their calls, and claim them anew. So
// nothing of what was stored is sent, and none of it becomes a dead letter, after it has returned
// nil. If ctx ends first, its cause is returned; then, and after any other error, the result says
// what was done, and the purge is to be run again.
//
// It needs the right to publish to $JS.API.STREAM.INFO.*, $JS.API.STREAM.MSG.GET.* and
// $JS.API.STREAM.MSG.DELETE.* of the pipeline's streams, to $JS.API.DIRECT.GET of the work stream, of
// the dead-letter stream and of the audit trail, to $JS.API.CONSUMER.NAMES of the work stream, to the subjects of
// the audit trail's actions and verdicts, and to $KV.<bucket>.recall and $KV.<bucket>_newer.>.
func (q *Queue) PurgeUser(ctx context.Context, user string, c PurgeConfig) (*PurgeResult, error) {
	p := &purging{q: q, user: user, dry: c.DryRun, found: c.Found, touched: map[string]bool{}}
	if user == "" {
		return &p.result, errors.New("user: must not be empty")
	}
	if c.DryRun {
		return &p.result, stopped(ctx, p.run(ctx))
	}
	a := &Action{Kind: ActionPurge, By: c.By, Host: c.Host, Selection: Filter{Users: []string{user}}.String()}
	if err := q.begin(ctx, a); err != nil {
		return &p.result, err
	}
	p.result.Run = a.Run
	err := stopped(ctx, p.run(ctx))
	return &p.result, q.end(ctx, a, p.result.counts(), err)
}

// counts are for the audit trail.
func (r *PurgeResult) counts() map[string]uint64 {
	return nonzero(map[string]uint64{
		"waiting": r.Waiting, "dead_letters": r.DeadLetters, "originals": r.Originals, "newer": r.Newer, "recalled": r.Recalled,
	})
}

// purging is one run of [Queue.PurgeUser].
type purging struct {
	q     *Queue
	user  string
	dry   bool
	found *PurgeResult // of a dry run before, or nil
	seal  seal         // of replays that wait; empty if there can be none

	mu      sync.Mutex
	result  PurgeResult
	touched map[string]bool // partitions in which events were waiting
}

func (p *purging) run(ctx context.Context) error {
	if err := p.q.clock.read(ctx); err != nil {
		return err
	}
	var err error
	if p.seal, _, err = p.q.storedSeal(ctx); err != nil {
		return fmt.Errorf("read what replays are sealed with: %w", err)
	}
	if err := p.letters(ctx); err != nil {
		return err
	}
	if err := p.waiting(ctx); err != nil {
		return err
	}
	if !p.dry {
		n, err := p.q.releaseAll(ctx, slices.Sorted(maps.Keys(p.touched)))
		p.result.Recalled = n
		if err != nil {
			return err
		}
		if err := p.letters(ctx); err != nil { // those that have died since
			return err
		}
	}
	if err := p.originals(ctx); err != nil {
		return err
	}
	return p.newer(ctx)
}

// erasuresAtOnce bounds the messages that are being erased.
const erasuresAtOnce = 512

// letters purges dead letters: those that are the user's by their subjects, and those of nobody there
// whose bodies name the user.
func (p *purging) letters(ctx context.Context) error {
	t := p.q.topology
	for _, hash := range []string{userHash(p.user), nobodysHash} {
		found := p.q.scanIn(ctx, t.DeadStreamName(), scanRange{from: 1, subjects: t.deadOfHash(hash)})
		if err := p.each(ctx, "the dead letters", t.DeadStreamName(), found, &p.result.DeadLetters); err != nil {
			return err
		}
	}
	return nil
}

// originals purges what events were before they were edited.
func (p *purging) originals(ctx context.Context) error {
	stream := p.q.topology.AuditStreamName()
	return p.each(ctx, "the audit trail", stream, p.q.auditTrail(ctx, "original.*.*", 1), &p.result.Originals)
}

// each erases those of a stream's messages that are the user's.
func (p *purging) each(ctx context.Context, what, stream string, messages iter.Seq2[*nats.Msg, error], count *uint64) error {
	erasing, ctx := errgroup.WithContext(ctx)
	erasing.SetLimit(erasuresAtOnce)
	for m, err := range messages {
		if err != nil {
			return cmp.Or(erasing.Wait(), fmt.Errorf("read %s: %w", what, err))
		}
		if p.matches(m.Header, m.Data) {
			erasing.Go(func() error { return p.erase(ctx, stream, sequenceOf(m), count) })
		}
	}
	return erasing.Wait()
}

// newer purges the record of what newer events have set. A worker that writes it anew meanwhile has it
// purged again.
func (p *purging) newer(ctx context.Context) error {
	for {
		n, err := p.q.readNewer(ctx, p.user)
		if err != nil || !n.Known() {
			return err
		}
		p.result.Newer = 1
		if p.dry {
			return nil
		}
		if err := p.overwriteNewer(ctx, n); err != nil {
			return err
		}
		if err := p.q.deleteNewer(ctx, p.user, n); !isWrongRevision(err) {
			return asNoReply(ctx, "$KV."+p.q.topology.NewerBucket()+".>", err)
		}
	}
}

// overwriteNewer erases the record before its key is deleted: what a later message on the key replaces
// the server takes away, but leaves on the disk. Where the bucket denies deletions, as ours once did
// and no update changes, the record, which holds hashes only, is just taken away.
func (p *purging) overwriteNewer(ctx context.Context, n *Newer) error {
	found, err := p.q.remove(ctx, p.q.topology.newerStreamName(), n.revision, true)
	if err != nil && strings.Contains(err.Error(), "message delete not permitted") {
		return nil
	}
	if found {
		n.revision = 0 // of the key, which has no message now
	}
	return err
}

// means reports whether a message is the user's. Most bodies it need not parse: without an escape they
// would hold the id as it is, but for what no UTF-8 is, which is read as U+FFFD.
func (p *purging) matches(h nats.Header, body []byte) bool {
	if h.Get(headerUser) == p.user {
		return true
	}
	if !bytes.Contains(body, []byte(p.user)) && bytes.IndexByte(body, '\\') < 0 && !strings.ContainsRune(p.user, utf8.RuneError) {
		return false
	}
	return slices.Contains(userIDs(body), p.user)
}

// erase deletes a message for good, and counts it.
func (p *purging) erase(ctx context.Context, stream string, sequence uint64, count *uint64) error {
	found := p.dry
	if !p.dry {
		var err error
		if found, err = p.q.remove(ctx, stream, sequence, true); err != nil {
			return err
		}
	}
	if found {
		p.mu.Lock()
		defer p.mu.Unlock()
		*count++
	}
	return nil
}

const (
	// siftedAtOnce is how many ranges of the work stream are read at a time, of so many sequences each
	// at least, and siftedRanges how many there are at most.
	siftedAtOnce = 4
	siftedRange  = 1 << 14
	siftedRanges = 1024
)

// waiting purges events of the work stream. All are read: who publishes by other means than ours may
// have put a user's event into any partition.
func (p *purging) waiting(ctx context.Context) error {
	info, err := p.q.streamInfo(ctx, p.q.topology.StreamName(), "")
	if err != nil {
		return err
	}
	from, to := max(info.State.FirstSeq, 1), info.State.LastSeq
	if found := p.found.of(p.user, info.Created); found != nil {
		if err := p.purgeFound(ctx, found.events); err != nil {
			return err
		}
		from = max(from, found.upTo+1)
	}
	if p.dry {
		p.result.found = &foundWaiting{user: p.user, stream: info.Created, upTo: to}
	}
	return p.siftAll(ctx, from, to)
}

func (p *purging) purgeFound(ctx context.Context, events []waitingEvent) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(erasuresAtOnce)
	for _, e := range events {
		group.Go(func() error { return p.purgeWaiting(ctx, e) })
	}
	return group.Wait()
}

func (p *purging) siftAll(ctx context.Context, from, to uint64) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(siftedAtOnce)
	size := max(siftedRange, (to-min(from, to))/siftedRanges+1)
	for first := from; first <= to; first += size {
		group.Go(func() error { return p.sift(ctx, scanRange{from: first, to: min(first+size-1, to)}) })
	}
	return group.Wait()
}

// sift purges the events of a range. It reads what a copy of the stream has that may lag, and the rest
// from the leader. A copy has all that was stored before the last that it has, so where it does not
// lag, that is one question.
func (p *purging) sift(ctx context.Context, r scanRange) error {
	erasing, ctx := errgroup.WithContext(ctx)
	erasing.SetLimit(erasuresAtOnce / siftedAtOnce)
	stream, next := p.q.topology.StreamName(), r.from
	look := func(e waitingEvent, h nats.Header, body []byte) {
		if next = e.sequence + 1; p.matches(h, body) {
			e.past = readSealed(h, body, p.seal)
			erasing.Go(func() error { return p.purgeWaiting(ctx, e) })
		}
	}
	for m, err := range p.q.scanIn(ctx, stream, r) {
		if err != nil {
			return cmp.Or(erasing.Wait(), fmt.Errorf("read the events that wait: %w", err))
		}
		look(waitingEvent{sequence: sequenceOf(m), subject: m.Header.Get(jetstream.SubjectHeader)}, m.Header, m.Data)
	}
	for {
		m, err := p.q.nextStored(ctx, stream, next)
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence > r.to {
			break
		}
		if err != nil {
			return cmp.Or(erasing.Wait(), fmt.Errorf("read the events that wait: %w", err))
		}
		h, _ := nats.DecodeHeadersMsg(m.Header)
		look(waitingEvent{sequence: m.Sequence, subject: m.Subject}, h, m.Data)
	}
	return erasing.Wait()
}

// waitingEvent is an event of the user.
type waitingEvent struct {
	sequence uint64
	subject  string
	past     *Past
}

// foundWaiting is what a purge has found in the work stream.
type foundWaiting struct {
	user   string
	stream time.Time // when that was created
	upTo   uint64    // the last sequence that was looked at
	events []waitingEvent
}

// of is what was found of a user in a stream, or nil.
func (r *PurgeResult) of(user string, stream time.Time) *foundWaiting {
	if r == nil || r.found == nil || r.found.user != user || !r.found.stream.Equal(stream) {
		return nil
	}
	return r.found
}

func (p *purging) purgeWaiting(ctx context.Context, e waitingEvent) error {
	p.mu.Lock()
	p.touched[p.q.topology.partitionOf(e.subject)] = true
	if p.dry {
		p.result.found.events = append(p.result.found.events, e)
	}
	p.mu.Unlock()
	if !p.dry && e.past != nil && !e.past.Letter.IsZero() { // whoever replayed it may wait for a verdict
		verdict, err := p.q.outcomeRecord(e.past, OutcomePurged, "")
		if err != nil {
			return err
		}
		if err := p.q.audit(ctx, electionTimeout, verdict); err != nil {
			return fmt.Errorf("write the verdict on a replay: %w", err)
		}
	}
	return p.erase(ctx, p.q.topology.StreamName(), e.sequence, &p.result.Waiting)
}

// partitionOf is the inverse of partitionSubject.
func (t Topology) partitionOf(subject string) string {
	if partition, ok := strings.CutPrefix(subject, t.PlainSubject()+"."); ok {
		return partition
	}
	return plainPartition
}

// nextStored reads the first message from a sequence on, from the stream's leader.
func (q *Queue) nextStored(ctx context.Context, stream string, from uint64) (m *storedMessage, err error) {
	err = retry(ctx, electionTimeout, func(ctx context.Context) error {
		m, err = q.readLeader(ctx, stream, struct {
			bySequence
			Subject string `json:"next_by_subj"`
		}{bySequence{from}, ">"})
		return err
	})
	return m, err
}
