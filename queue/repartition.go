package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The work stream's metadata say that publishing is closed, and since when.
const metaPaused = "identify-worker.paused"

// isPaused reports whether publishing is closed while the partitions change.
func isPaused(c jetstream.StreamConfig) bool { return c.Metadata[metaPaused] != "" }

// pausedSubject is what the work stream listens to meanwhile. A publisher finds nobody on the
// real subjects, as during an election, and tries again.
func (t Topology) pausedSubject() string { return t.PlainSubject() + "-paused" }

// partitionsOf reads the number of partitions from a work stream; 0 if it hashes in another way.
func partitionsOf(c jetstream.StreamConfig) int {
	if c.SubjectTransform == nil {
		return 0
	}
	found := regexp.MustCompile(`\.\{\{partition\((\d+),1\)\}\}$`).FindStringSubmatch(c.SubjectTransform.Destination)
	if found == nil {
		return 0
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

// StreamPartitions is how many partitions the work stream has now; 0 if there is no stream, or it
// is not hashed as ours are.
func (q *Queue) StreamPartitions(ctx context.Context) (int, error) {
	info, err := q.streamInfo(ctx, q.topology.StreamName(), "")
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return partitionsOf(info.Config), nil
}

const (
	// repartitionPause is the longest time for which publishing is closed.
	repartitionPause = 30 * time.Second
	// drainLook is how often the backlog is looked at.
	drainLook = 500 * time.Millisecond
)

// Repartition changes the number of partitions to the topology's, without bringing any user's
// events out of order: no event may wait in an old partition when the first one goes into a
// new one. So it waits, at most for patience, until the backlog is so small that it drains
// within half a minute; then closes publishing, waits until all is delivered, and changes the
// stream. Publishers find nobody meanwhile, as during an election, and try again: ours by
// itself, under the same id. If the backlog does not drain, publishing is opened again, nothing
// has changed, and the error says why.
//
// Workers with the old number go on until the change, and then end with a [*MismatchError].
//
// It returns what it changed: nothing if the stream has as many partitions already. It also opens
// a stream again that an interrupted Repartition has left closed.
func (q *Queue) Repartition(ctx context.Context, patience time.Duration) (*Change, error) {
	info, err := q.streamInfo(ctx, q.topology.StreamName(), "")
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	have := partitionsOf(info.Config)
	if have == q.topology.Partitions || have == 0 {
		return nil, q.open(ctx, info.Config) // 0: Setup says what is wrong
	}
	if err := q.awaitLittle(ctx, patience); err != nil {
		return nil, err
	}
	// An update replaces all: it is made from what is there now, not from before the waiting.
	if info, err = q.streamInfo(ctx, q.topology.StreamName(), ""); err != nil {
		return nil, err
	}
	if partitionsOf(info.Config) != have || isPaused(info.Config) {
		return nil, errNotAlone
	}
	closed := q.closed(info.Config)
	q.log.Info("publishing is closed until all events are delivered, publishers wait meanwhile")
	if err := q.update(ctx, closed); err != nil {
		return nil, q.reopen(ctx, closed, fmt.Errorf("close the stream for publishers: %w", err)) // it may be closed all the same
	}
	if err := q.awaitNone(ctx); err != nil {
		return nil, q.reopen(ctx, closed, err)
	}
	if err := q.rehash(ctx, closed); err != nil {
		return nil, q.reopen(ctx, closed, err)
	}
	return &Change{Stream: q.topology.StreamName(), Field: fieldPartitions, Have: strconv.Itoa(have), Want: strconv.Itoa(q.topology.Partitions)}, nil
}

// errNotAlone says that two change the partitions at the same time. JetStream has no update that
// depends on a revision, so whoever has closed the stream looks whether it is still its own pause, just
// before the change. Another's can come between the two only within that round trip, and then it is
// over long before the other has seen the stream empty twice, and looks in its turn.
var errNotAlone = errors.New("somebody else is changing the partitions: see how many there are, in identify-worker status, and run it again")

// rehash gives the stream, which this one has closed and which is empty, its new partitions, and opens it.
func (q *Queue) rehash(ctx context.Context, closed jetstream.StreamConfig) error {
	info, err := q.streamInfo(ctx, q.topology.StreamName(), "")
	if err != nil {
		return err
	}
	if info.Config.Metadata[metaPaused] != closed.Metadata[metaPaused] {
		return errNotAlone
	}
	opened := q.opened(info.Config)
	opened.SubjectTransform = q.topology.workStream(q.nc.MaxPayload()).SubjectTransform
	if err := q.update(ctx, opened); err != nil {
		return fmt.Errorf("change the partitions: %w", err)
	}
	return nil
}

func (q *Queue) update(ctx context.Context, c jetstream.StreamConfig) error {
	return q.attend(ctx, func(ctx context.Context) error {
		_, err := q.js.UpdateStream(ctx, c)
		return err
	}, toAPI("STREAM.UPDATE."+c.Name))
}

func (q *Queue) closed(c jetstream.StreamConfig) jetstream.StreamConfig {
	c.Subjects = []string{q.topology.pausedSubject()}
	c.Metadata = maps.Clone(c.Metadata)
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	c.Metadata[metaPaused] = time.Now().UTC().Format(time.RFC3339Nano)
	return c
}

func (q *Queue) opened(c jetstream.StreamConfig) jetstream.StreamConfig {
	c.Subjects = q.topology.workStream(q.nc.MaxPayload()).Subjects
	c.Metadata = maps.Clone(c.Metadata)
	delete(c.Metadata, metaPaused)
	return c
}

// open ends a pause that there may be.
func (q *Queue) open(ctx context.Context, c jetstream.StreamConfig) error {
	if !isPaused(c) {
		return nil
	}
	if err := q.update(ctx, q.opened(c)); err != nil {
		return fmt.Errorf("open the stream for publishers: %w", err)
	}
	return nil
}

// reopen opens the stream as it was, after a failure, even if ctx has ended; not if another one has
// closed it.
func (q *Queue) reopen(ctx context.Context, closed jetstream.StreamConfig, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*callTimeout)
	defer cancel()
	info, err := q.streamInfo(ctx, q.topology.StreamName(), "")
	if err == nil && info.Config.Metadata[metaPaused] == closed.Metadata[metaPaused] {
		err = q.open(ctx, info.Config)
	}
	if err != nil {
		return fmt.Errorf("%w; and publishing is still closed: run identify-worker setup --update (%w)", why, err)
	}
	return why
}

// awaitLittle waits until the backlog can be expected to drain while publishing is closed.
func (q *Queue) awaitLittle(ctx context.Context, patience time.Duration) error {
	return q.await(ctx, patience, func(s *Status) bool {
		left, drains := s.DrainTime()
		return s.Backlog == 0 || drains && left < repartitionPause/2
	})
}

// awaitNone waits until nothing waits, twice in a row: a message that was under way when
// publishing was closed may still be stored.
func (q *Queue) awaitNone(ctx context.Context) error {
	empty := 0
	return q.await(ctx, repartitionPause, func(s *Status) bool {
		if s.Backlog > 0 {
			empty = 0
		} else {
			empty++
		}
		return empty >= 2
	})
}

// await looks until the state is as it should be, and says after a time why it may not come to that.
func (q *Queue) await(ctx context.Context, most time.Duration, reached func(*Status) bool) error {
	said := false
	for begun := time.Now(); ; pause(ctx, drainLook) {
		s, _, err := q.progress(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case reached(s):
			return nil
		case time.Since(begun) >= most:
			return fmt.Errorf("%d events wait in the old partitions, and to change these now would lose the events' order: %s", s.Backlog, s.whyNotDrained())
		case !said:
			said = true
			q.log.Info("waiting for events in the old partitions to be delivered", slog.Uint64("events", s.Backlog), slog.Duration("at_most", most))
		}
	}
}

// whyNotDrained is the first thing to look at.
func (s *Status) whyNotDrained() string {
	for _, r := range s.Replicas {
		if r.Hold != "" {
			return "a replica is on hold, as Userpilot answers " + r.Hold + "; see identify-worker status"
		}
		if !r.OutageSince.IsZero() {
			return "Userpilot seems to be down; see identify-worker status"
		}
	}
	left, drains := s.DrainTime()
	switch {
	case len(s.Replicas) == 0:
		return "no worker is running; start one with the old number of partitions"
	case !s.QuietUntil.IsZero():
		return "Userpilot asked for a pause; try again after it"
	case !drains:
		return "nothing is being delivered; see identify-worker status"
	default:
		return fmt.Sprintf("at the present rate they take %v; wait, or stop publishing, and try again", left.Round(time.Second))
	}
}
