package inspector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// errLags says that the server that answered lags behind one that answered before.
var errLags = fmt.Errorf("a replica of the audit trail lags behind the others: %w", jsapi.ErrTryAgain)

// outcomes reads the outcomes of earlier replays of the letters, by their OutcomeSubject. It also
// requests this run's own record: a replica of the stream that does not have it yet may also lack
// outcomes.
func (r *replaying) outcomes(ctx context.Context, letters []*deadletter.Letter) (map[string]deadletter.Outcome, error) {
	t := r.q.topology
	begun := begunSubject(t, r.result.Run)
	request := jsapi.DirectRequest{Last: []string{begun}}
	for _, l := range letters {
		if !l.Name.IsZero() {
			request.Last = append(request.Last, deadletter.OutcomeSubject(t, l.Name))
		}
	}
	var outcomes map[string]deadletter.Outcome
	err := jsapi.Retry(ctx, jsapi.ElectionTimeout, func(ctx context.Context) error {
		var run uint64
		outcomes = map[string]deadletter.Outcome{}
		end, err := r.q.api.Direct(ctx, t.AuditStreamName(), request, func(m *nats.Msg) bool {
			if subject := m.Header.Get(jetstream.SubjectHeader); subject == begun {
				run = jsapi.SequenceOf(m)
			} else if v, ok := deadletter.ReadOutcome(t, subject, m.Data); ok {
				outcomes[subject] = v.Outcome
			}
			return true
		})
		if err != nil {
			return err
		}
		upTo, _ := strconv.ParseUint(end.Get("Nats-UpTo-Sequence"), 10, 64)
		if run == 0 || upTo < r.readThrough {
			return errLags
		}
		r.readThrough = max(r.readThrough, run) // no outcome that was not requested is older
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the outcomes of replays: %w", err)
	}
	return outcomes, nil
}

// confirm verifies that an event that the server took for a duplicate is an earlier attempt of the
// letter's replay.
func (r *replaying) confirm(ctx context.Context, l *deadletter.Letter, sequence uint64) error {
	m, err := r.q.stored(ctx, sequence)
	if err == nil {
		h, _ := nats.DecodeHeadersMsg(m.Header)
		if past := deadletter.ReadSealed(h, m.Data, r.seal); past == nil || !past.Letter.Same(l.Name) {
			return errOtherEvent
		}
		return nil
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("read the event that was stored before: %w", err)
	}
	return r.q.awaitOutcome(ctx, l.Name) // it has left the stream, and only with an outcome
}

// errOtherEvent says that a letter was not sent because its message id is in use.
const errOtherEvent = skipReason("another event has its message id: replay it again in two minutes")

// stored reads an event of the work stream.
func (i *Inspector) stored(ctx context.Context, sequence uint64) (m *jsapi.StoredMessage, err error) {
	err = jsapi.Retry(ctx, jsapi.ElectionTimeout, func(ctx context.Context) error {
		m, err = i.api.ReadSequence(ctx, i.topology.StreamName(), sequence)
		return err
	})
	return m, err
}

// awaitOutcome returns nil if a letter's replay has an outcome. It gives a lagging replica of the
// audit trail a second to catch up.
func (i *Inspector) awaitOutcome(ctx context.Context, letter deadletter.Position) error {
	subject, begun := deadletter.OutcomeSubject(i.topology, letter), time.Now()
	return jsapi.Retry(ctx, jsapi.ElectionTimeout, func(ctx context.Context) error {
		found := false
		_, err := i.api.Direct(ctx, i.topology.AuditStreamName(), jsapi.DirectRequest{Last: []string{subject}}, func(m *nats.Msg) bool {
			_, found = deadletter.ReadOutcome(i.topology, subject, m.Data)
			return true
		})
		switch {
		case err != nil || found:
			return err
		case time.Since(begun) < lagTimeout:
			return jsapi.ErrTryAgain
		}
		return errOtherEvent
	})
}

// count counts an outcome.
func (r *ReplayResult) count(outcome deadletter.Outcome) {
	switch outcome {
	case deadletter.OutcomeDelivered:
		r.Delivered++
	case deadletter.OutcomeSuperseded:
		r.Superseded++
	case deadletter.OutcomePurged:
		r.Purged++
	case deadletter.OutcomeDead:
		r.Dead++
	}
}

// outcomes is how many outcomes were counted.
func (r *ReplayResult) outcomes() uint64 { return r.Delivered + r.Superseded + r.Purged + r.Dead }

// awaited is whether a run waits for the outcome of a letter. An outcome counts once its letter
// counts as replayed, so that the counts add up; it may arrive before that.
type awaited uint8

const (
	notAwaited awaited = iota // or the outcome has arrived
	whenSent                  // the event was sent, and its letter may still be there
	whenGone                  // the letter counts as replayed
)

// expect records that a letter's outcome is pending.
func (r *replaying) expect(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if place, _ := slices.BinarySearch(r.s.ids, id); r.awaiting != nil && r.early[id] == "" {
		r.awaiting[place] = whenSent
		r.expected++
	}
}

// arrived records a letter's outcome, and reports whether it was pending. The outcome of a letter
// that is not sent yet belongs to an interrupted run, which had sent it.
func (r *replaying) arrived(id uint64, outcome deadletter.Outcome) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	place, selected := slices.BinarySearch(r.s.ids, id)
	if !selected || r.awaiting == nil {
		return false
	}
	before := r.awaiting[place]
	if before == whenGone {
		r.result.count(outcome)
	} else {
		r.early[id] = outcome
	}
	r.drop(place)
	return before != notAwaited
}

// conclude counts the outcome of a letter that counts as replayed now, if the outcome is known.
// r.mu must be held.
func (r *replaying) conclude(x removal) {
	outcome := cmp.Or(x.outcome, r.early[x.id])
	delete(r.early, x.id)
	place, _ := slices.BinarySearch(r.s.ids, x.id)
	switch {
	case outcome != "":
		r.result.count(outcome)
	case place < len(r.awaiting) && r.awaiting[place] == whenSent:
		r.awaiting[place] = whenGone
	}
}

// resolve records that a letter's outcome will not come, or does not count.
func (r *replaying) resolve(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(id)
}

// forget is resolve. r.mu must be held.
func (r *replaying) forget(id uint64) {
	delete(r.early, id)
	if place, selected := slices.BinarySearch(r.s.ids, id); selected && r.awaiting != nil {
		r.drop(place)
	}
}

// drop ends the wait for an outcome. r.mu must be held.
func (r *replaying) drop(place int) {
	if r.awaiting[place] != notAwaited {
		r.awaiting[place] = notAwaited
		r.expected--
	}
}

func (r *replaying) pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.expected
}

// How often outcomes are polled: less often as long as none arrives.
const (
	minPollInterval = 250 * time.Millisecond
	maxPollInterval = 2 * time.Second
)

// awaitOutcomes blocks until every replayed event has its outcome, or ctx ends.
func (r *replaying) awaitOutcomes(ctx context.Context) error {
	wait := minPollInterval
	for before := r.pending(); before > 0; {
		if err := r.readOutcomes(ctx); err != nil {
			return err
		}
		left := r.pending()
		if left == 0 {
			break
		}
		if wait = min(wait*3/2, maxPollInterval); left < before {
			wait = minPollInterval
		}
		before = left
		jsapi.Pause(ctx, wait)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// readOutcomes reads the outcomes that have arrived since the last call.
func (r *replaying) readOutcomes(ctx context.Context) error {
	err := jsapi.Retry(ctx, jsapi.ElectionTimeout, func(ctx context.Context) error {
		for m, err := range r.q.auditTrail(ctx, "verdict.*.*", r.readThrough+1) {
			if err != nil {
				return err
			}
			r.readThrough = jsapi.SequenceOf(m)
			v, ok := deadletter.ReadOutcome(r.q.topology, m.Header.Get(jetstream.SubjectHeader), m.Data)
			if ok && r.arrived(v.ID, v.Outcome) && v.Outcome == deadletter.OutcomeDead { // else it is of another run
				r.noteDeath(ctx, v.Next)
			}
		}
		return nil
	})
	if err != nil {
		return jsapi.Stopped(ctx, fmt.Errorf("read the outcomes of replays: %w", err))
	}
	return nil
}

// maxDiedAgain bounds the new dead letters in a result.
const maxDiedAgain = 10

// noteDeath counts an event that died again and looks up its new dead letter.
func (r *replaying) noteDeath(ctx context.Context, name string) {
	r.mu.Lock()
	r.died++
	full := len(r.result.DiedAgain) >= maxDiedAgain
	r.mu.Unlock()
	letter, err := deadletter.ParsePosition(name)
	if full || err != nil {
		return
	}
	request := jsapi.DirectRequest{Last: []string{deadletter.SubjectsOfEvent(r.q.topology, letter)}}
	_, _ = r.q.api.Direct(ctx, r.q.topology.DeadStreamName(), request, func(m *nats.Msg) bool { // it is only for display
		r.count(func(x *ReplayResult) { x.DiedAgain = append(x.DiedAgain, jsapi.SequenceOf(m)) })
		return true
	})
}

// lagTimeout is how long a lagging replica of a stream may take to catch up.
const lagTimeout = time.Second

// readSelected reads letters of a selection, beginning at an index in it, from at most so many
// messages of the stream. next is the index after those covered: letters before it that were not
// returned are gone.
func (i *Inspector) readSelected(ctx context.Context, s *Selection, place, most int) (letters []*deadletter.Letter, next int, err error) {
	stream := i.topology.DeadStreamName()
	from := s.ids[place]
	begun := time.Now()
	err = jsapi.Retry(ctx, jsapi.ElectionTimeout, func(ctx context.Context) error {
		letters, next = nil, place
		var unreadable error
		end, err := i.api.Direct(ctx, stream, jsapi.DirectRequest{Sequence: from, Batch: most, MaxBytes: jsapi.ScanBytes}, func(m *nats.Msg) bool {
			var l *deadletter.Letter
			if l, unreadable = deadletter.ReadLetter(m); unreadable != nil {
				return false
			}
			l.Complete(i.topology)
			var selected bool
			if next, selected = slices.BinarySearch(s.ids, l.ID); selected {
				letters = append(letters, l)
				next++
			}
			return true
		})
		if err = errors.Join(err, unreadable); err != nil {
			return err
		}
		if more, err := jsapi.NextBatch(end); more > 0 || err != nil || next == len(s.ids) {
			return err
		}
		if time.Since(begun) < lagTimeout {
			return jsapi.ErrTryAgain
		}
		next = len(s.ids)
		return nil
	})
	if err != nil {
		return nil, place, jsapi.Stopped(ctx, fmt.Errorf("read the dead letters: %w", err))
	}
	return letters, next, nil
}

// keepOriginal stores a letter's body in the audit trail.
func (i *Inspector) keepOriginal(ctx context.Context, l *deadletter.Letter, run string) error {
	m := nats.NewMsg(originalSubject(i.topology, l.Name))
	m.Header.Set(deadletter.HeaderRun, run)
	if user := l.Header[deadletter.HeaderUser]; len(user) > 0 {
		m.Header[deadletter.HeaderUser] = user
	}
	m.Data = l.Body
	return i.audit(ctx, jsapi.ElectionTimeout, m)
}
