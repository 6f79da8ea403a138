package deadletter

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// endsAtOnce bounds the records that EndBackfill changes at the same time.
const endsAtOnce = 64

// EndBackfill deletes the records that only waiting backfill needed, if none waits any more. It
// blocks until that is done, and sends nothing if there are no such records. Any replica may call it,
// at any time.
//
// It deletes only records that were stored before the stream was seen without backfill: backfill that
// is published later is newer than everything in them.
func (s *Store) EndBackfill(ctx context.Context) error {
	if !s.tracked.waiting.Load() {
		return nil
	}
	last, err := s.api.ReadLast(ctx, VersionsStream(s.topology), "$KV."+s.topology.VersionsBucket()+".>")
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the version records: %w", err)
	}
	work, err := s.api.StreamInfo(ctx, s.topology.StreamName(), s.topology.BackfillFilter())
	if waiting := err != nil || len(work.State.Subjects) > 0; waiting {
		return err
	}
	s.tracked.waiting.Store(false)
	if err := s.endBackfill(ctx, last.Sequence); err != nil {
		s.tracked.waiting.Store(true)
		return fmt.Errorf("delete the version records for backfill: %w", err)
	}
	return nil
}

// endBackfill deletes the records up to a sequence of the bucket.
func (s *Store) endBackfill(ctx context.Context, to uint64) error {
	found := map[string]uint64{} // subject to sequence
	err := s.readRecords(ctx, 1, to, func(m *nats.Msg, sequence uint64) {
		if m.Header.Get(backfillHeader) != "" {
			found[m.Subject] = sequence
		}
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(endsAtOnce)
	for subject, sequence := range found {
		if sequence > to {
			s.tracked.waiting.Store(true)
			continue
		}
		group.Go(func() error { return s.endRecord(ctx, subject, sequence) })
	}
	return group.Wait()
}

// endRecord deletes a record, or keeps it for letters only. If it was changed since it was read, it
// stays as it is.
func (s *Store) endRecord(ctx context.Context, subject string, sequence uint64) error {
	n, err := s.versionsAt(ctx, subject)
	if err != nil {
		return err
	}
	if n.revision != sequence {
		s.tracked.waiting.Store(true)
		return nil
	}
	n.record.Backfill = ""
	if n.record.spent() {
		err = s.deleteVersions(ctx, subject, n)
	} else {
		err = s.writeVersions(ctx, subject, n)
	}
	if jsapi.IsWrongRevision(err) {
		s.tracked.waiting.Store(true)
		return nil
	}
	return err
}
