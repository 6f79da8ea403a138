package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Work joins the fleet and passes the events of this replica's share of the partitions to h until
// ctx ends. Then it releases them gracefully: it waits until h is done, leaves the fleet, and
// returns nil. While NATS is unreachable, streams are missing or this user lacks a permission, it
// logs that once, and continues by itself when that is over (see [Queue.MissingPermission]). It returns an
// error only for a configuration that can never work.
func (q *Queue) Work(ctx context.Context, config MemberConfig, h Handler) error {
	config, err := config.withDefaults(q.topology)
	if err != nil {
		return err
	}
	var trouble changeLog
	for ctx.Err() == nil {
		err := q.session(ctx, config, h, &trouble)
		if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
			return err
		}
		if ctx.Err() == nil {
			trouble.report(q.log, err)
			jsapi.Pause(ctx, reconcileInterval)
		}
	}
	return nil
}

// session is one membership, from joining until ctx ends or the membership expires.
func (q *Queue) session(ctx context.Context, config MemberConfig, h Handler, trouble *changeLog) error {
	if err := q.mayWork(ctx, config.Permissions); err != nil {
		return err
	}
	m, err := q.Join(ctx, config)
	if err != nil {
		return err
	}
	m.log.Debug("joined")
	// Calls in flight when ctx ends are finished and settled, so calls and renewals have their own
	// context. It ends when the membership expires.
	calls, lapse := context.WithCancelCause(context.WithoutCancel(ctx))
	defer lapse(errGivenUp)
	var wg sync.WaitGroup
	defer wg.Wait()
	f := q.newFleet(calls, m, h, trouble)
	wg.Go(func() {
		if err := m.heartbeat(calls); err != nil {
			lapse(err)
		}
	})
	err = f.run(ctx)
	lapse(errGivenUp)
	wg.Wait()
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), jsapi.CallTimeout)
	defer cancel()
	if leave := m.leave(leaving); leave != nil && err == nil && ctx.Err() == nil {
		err = fmt.Errorf("leave: %w", leave)
	}
	return err
}
