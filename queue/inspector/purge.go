package inspector

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// PurgeConfig configures [Inspector.PurgeUser]. The zero value erases.
type PurgeConfig struct {
	By, Host string // the operator, and the operator's machine
	// DryRun only counts the data that would be purged.
	DryRun bool
	// Found is the result of a dry run for the same user. The purge then reads only those waiting
	// events that were published since. Nil reads all.
	Found *PurgeResult
}

// PurgeResult counts the purged data.
type PurgeResult struct {
	Run            string `json:"run,omitempty"` // names it in the audit trail; empty for a dry run
	Waiting        uint64 `json:"waiting"`       // events in the work stream
	DeadLetters    uint64 `json:"dead_letters"`
	Originals      uint64 `json:"originals"`       // bodies in the audit trail, from before an edit
	VersionRecords uint64 `json:"version_records"` // 1 if the user had one
	Recalled       uint64 `json:"recalled"`        // claims that replicas released to drop what they had read ahead

	found *foundWaiting
}

// PurgeUser erases everything stored for a user: dead letters, waiting events, the original bodies
// of edited events, and the version record. Deleted data is overwritten on disk. PurgeUser does not
// stop producers, whose new events stay, and a replay in progress can publish what it has just
// read: stop both first.
//
// It blocks until the workers have dropped what they had read ahead: they release the partitions in
// which the user's events waited, finish their calls, and re-claim them. So after PurgeUser returns
// nil, no erased event is sent or becomes a dead letter. If ctx ends first, PurgeUser returns its
// cause. After that and any other error, the result counts what was done, and the purge must be run
// again.
//
// It needs permission to publish to $JS.API.STREAM.INFO.*, $JS.API.STREAM.MSG.GET.* and
// $JS.API.STREAM.MSG.DELETE.* of the pipeline's streams, to $JS.API.DIRECT.GET of the work stream,
// the dead-letter stream and the audit trail, to $JS.API.CONSUMER.NAMES of the work stream, to the
// subjects of the audit trail's actions and verdicts, and to $KV.<bucket>.recall and
// $KV.<bucket>_versions.>.
func (i *Inspector) PurgeUser(ctx context.Context, user string, c PurgeConfig) (*PurgeResult, error) {
	p := &purging{q: i, user: user, dry: c.DryRun, found: c.Found, touched: map[string]bool{}}
	if user == "" {
		return &p.result, errors.New("user: must not be empty")
	}
	if c.DryRun {
		return &p.result, jsapi.Stopped(ctx, p.run(ctx))
	}
	a := &Action{Kind: ActionPurge, By: c.By, Host: c.Host, Selection: Filter{Users: []string{user}}.String()}
	if err := i.begin(ctx, a); err != nil {
		return &p.result, err
	}
	p.result.Run = a.Run
	err := jsapi.Stopped(ctx, p.run(ctx))
	return &p.result, i.end(ctx, a, p.result.counts(), err)
}

// counts returns the numbers for the audit trail.
func (r *PurgeResult) counts() map[string]uint64 {
	return nonzero(map[string]uint64{
		"waiting": r.Waiting, "dead_letters": r.DeadLetters, "originals": r.Originals, "version_records": r.VersionRecords, "recalled": r.Recalled,
	})
}

// purging is one run of [Inspector.PurgeUser].
type purging struct {
	q     *Inspector
	user  string
	dry   bool
	found *PurgeResult    // of an earlier dry run, or nil
	seal  deadletter.Seal // of waiting replays; empty if there can be none

	mu      sync.Mutex
	result  PurgeResult
	touched map[string]bool // partitions that had waiting events
}

func (p *purging) run(ctx context.Context) error {
	var err error
	if p.q, err = p.q.ofStream(ctx); err != nil {
		return err
	}
	if err := p.q.api.Clock.Read(ctx); err != nil {
		return err
	}
	if p.seal, _, err = p.q.letters.StoredSeal(ctx); err != nil {
		return fmt.Errorf("read the seal of replays: %w", err)
	}
	if err := p.letters(ctx); err != nil {
		return err
	}
	if err := p.waiting(ctx); err != nil {
		return err
	}
	if !p.dry {
		n, err := fleet.New(p.q.queue).ReleaseAll(ctx, slices.Sorted(maps.Keys(p.touched)))
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
	return p.versions(ctx)
}

// ofStream returns an inspector that knows how many partitions the work stream has, for an operator
// who has not said it: replicas release claims by partition.
func (i *Inspector) ofStream(ctx context.Context) (*Inspector, error) {
	t := i.topology
	partitions, err := i.queue.StreamPartitions(ctx)
	if err != nil || partitions == 0 || partitions == t.Partitions {
		return i, err
	}
	t.Partitions = partitions
	q, err := queue.New(i.api.NATS, t, i.log)
	if err != nil {
		return nil, err
	}
	return New(q), nil
}

// erasuresAtOnce bounds concurrent erasures.
const erasuresAtOnce = 512

// letters purges dead letters: those with the user in their subjects, and those without a user in
// their subjects whose bodies name the user.
func (p *purging) letters(ctx context.Context) error {
	t := p.q.topology
	for _, hash := range []string{jsapi.UserHash(p.user), deadletter.NoUserHash} {
		found := p.q.allStored(ctx, t.DeadStreamName(), jsapi.ScanRange{From: 1, Subjects: deadletter.SubjectsOfUser(t, hash)})
		if err := p.each(ctx, "the dead letters", t.DeadStreamName(), found, &p.result.DeadLetters); err != nil {
			return err
		}
	}
	return nil
}

// originals purges the original bodies of edited events.
func (p *purging) originals(ctx context.Context) error {
	t := p.q.topology
	found := p.q.allStored(ctx, t.AuditStreamName(), jsapi.ScanRange{From: 1, Subjects: deadletter.AuditSubject(t, "original.*.*")})
	return p.each(ctx, "the audit trail", t.AuditStreamName(), found, &p.result.Originals)
}

// each erases those messages of a stream that belong to the user.
func (p *purging) each(ctx context.Context, what, stream string, messages iter.Seq2[*nats.Msg, error], count *uint64) error {
	erasing, ctx := errgroup.WithContext(ctx)
	erasing.SetLimit(erasuresAtOnce)
	for m, err := range messages {
		if err != nil {
			return cmp.Or(erasing.Wait(), fmt.Errorf("read %s: %w", what, err))
		}
		if p.matches(m.Header, m.Data) {
			erasing.Go(func() error { return p.erase(ctx, stream, jsapi.SequenceOf(m), count) })
		}
	}
	return erasing.Wait()
}

// versions purges the version record.
func (p *purging) versions(ctx context.Context) error {
	found, err := p.q.letters.EraseVersions(ctx, p.user, p.dry)
	if found {
		p.result.VersionRecords = 1
	}
	return err
}

// matches reports whether a message belongs to the user. It parses few bodies: one without an
// escape contains the id literally. The exception is invalid UTF-8, which is read as U+FFFD.
func (p *purging) matches(h nats.Header, body []byte) bool {
	if h.Get(deadletter.HeaderUser) == p.user {
		return true
	}
	if !bytes.Contains(body, []byte(p.user)) && bytes.IndexByte(body, '\\') < 0 && !strings.ContainsRune(p.user, utf8.RuneError) {
		return false
	}
	return deadletter.Names(body, p.user)
}

// erase deletes a message securely and counts it.
func (p *purging) erase(ctx context.Context, stream string, sequence uint64, count *uint64) error {
	found := p.dry
	if !p.dry {
		var err error
		if found, err = p.q.api.Remove(ctx, stream, sequence, true); err != nil {
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
	// rangesAtOnce is how many ranges of the work stream are read concurrently. Each has at least
	// minRange sequences, and there are about maxRanges at most.
	rangesAtOnce = 4
	minRange     = 1 << 14
	maxRanges    = 1024
)

// waiting purges events of the work stream. It reads all of them, because other publishers may have
// put a user's event into any partition.
func (p *purging) waiting(ctx context.Context) error {
	info, err := p.q.api.StreamInfo(ctx, p.q.topology.StreamName(), "")
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
	return p.purgeRanges(ctx, from, to)
}

func (p *purging) purgeFound(ctx context.Context, events []waitingEvent) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(erasuresAtOnce)
	for _, e := range events {
		group.Go(func() error { return p.purgeWaiting(ctx, e) })
	}
	return group.Wait()
}

func (p *purging) purgeRanges(ctx context.Context, from, to uint64) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(rangesAtOnce)
	size := max(minRange, (to-min(from, to))/maxRanges+1)
	for first := from; first <= to; first += size {
		group.Go(func() error { return p.purgeRange(ctx, jsapi.ScanRange{From: first, To: min(first+size-1, to)}) })
	}
	return group.Wait()
}

// purgeRange purges the user's events in a range.
func (p *purging) purgeRange(ctx context.Context, r jsapi.ScanRange) error {
	erasing, ctx := errgroup.WithContext(ctx)
	erasing.SetLimit(erasuresAtOnce / rangesAtOnce)
	for m, err := range p.q.allStored(ctx, p.q.topology.StreamName(), r) {
		if err != nil {
			return cmp.Or(erasing.Wait(), fmt.Errorf("read the waiting events: %w", err))
		}
		if p.matches(m.Header, m.Data) {
			e := waitingEvent{jsapi.SequenceOf(m), m.Header.Get(jetstream.SubjectHeader), deadletter.ReadSealed(m.Header, m.Data, p.seal)}
			erasing.Go(func() error { return p.purgeWaiting(ctx, e) })
		}
	}
	return erasing.Wait()
}

// waitingEvent is an event of the user in the work stream.
type waitingEvent struct {
	sequence uint64
	subject  string
	past     *deadletter.ReplayInfo
}

// foundWaiting is what a dry run has found in the work stream.
type foundWaiting struct {
	user   string
	stream time.Time // its creation time
	upTo   uint64    // the last sequence read
	events []waitingEvent
}

// of returns the findings if they are from this user and stream, otherwise nil.
func (r *PurgeResult) of(user string, stream time.Time) *foundWaiting {
	if r == nil || r.found == nil || r.found.user != user || !r.found.stream.Equal(stream) {
		return nil
	}
	return r.found
}

func (p *purging) purgeWaiting(ctx context.Context, e waitingEvent) error {
	p.mu.Lock()
	partition, _ := p.q.topology.PartitionOf(e.subject)
	p.touched[partition] = true
	if p.dry {
		p.result.found.events = append(p.result.found.events, e)
	}
	p.mu.Unlock()
	if !p.dry && e.past != nil && !e.past.Letter.IsZero() { // a replay may be waiting for its outcome
		record, err := p.q.letters.NewOutcome(e.past, deadletter.OutcomePurged, "")
		if err != nil {
			return err
		}
		if err := p.q.audit(ctx, jsapi.ElectionTimeout, record); err != nil {
			return fmt.Errorf("store the outcome of a replay: %w", err)
		}
	}
	return p.erase(ctx, p.q.topology.StreamName(), e.sequence, &p.result.Waiting)
}

// allStored reads a range of a stream from any replica of it, which may lag, and then the rest from the
// leader. A replica has every message before its last one, so if it does not lag, the leader is asked
// only once.
func (i *Inspector) allStored(ctx context.Context, stream string, r jsapi.ScanRange) iter.Seq2[*nats.Msg, error] {
	return func(yield func(*nats.Msg, error) bool) {
		next := r.From
		for m, err := range i.api.Scan(ctx, stream, r) {
			if !yield(m, err) || err != nil {
				return
			}
			next = jsapi.SequenceOf(m) + 1
		}
		for {
			m, err := i.nextStored(ctx, stream, next, cmp.Or(r.Subjects, ">"))
			switch {
			case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && r.To != 0 && m.Sequence > r.To:
				return
			case err != nil:
				yield(nil, err)
				return
			}
			if !yield(asScanned(m), nil) {
				return
			}
			next = m.Sequence + 1
		}
	}
}

// asScanned returns a message as a scan does.
func asScanned(m *jsapi.StoredMessage) *nats.Msg {
	h, err := nats.DecodeHeadersMsg(m.Header)
	if err != nil || h == nil {
		h = nats.Header{}
	}
	h.Set(jetstream.SequenceHeader, strconv.FormatUint(m.Sequence, 10))
	h.Set(jetstream.SubjectHeader, m.Subject)
	return &nats.Msg{Header: h, Data: m.Data}
}

// nextStored reads the first message at or after a sequence on some subjects from the stream's leader.
func (i *Inspector) nextStored(ctx context.Context, stream string, from uint64, subjects string) (m *jsapi.StoredMessage, err error) {
	err = jsapi.Retry(ctx, jsapi.ElectionTimeout, func(ctx context.Context) error {
		m, err = i.api.ReadNext(ctx, stream, from, subjects)
		return err
	})
	return m, err
}
