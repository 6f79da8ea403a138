package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Work joins the fleet, and passes the events of this replica's share of the partitions to h until
// ctx ends. Then it releases them gracefully: it waits until h is done, leaves the fleet, and
// returns nil. While NATS is unreachable, streams are missing or this user lacks a permission, it
// logs that once, and continues by itself when that is over (see [Fleet.MissingPermission]). It
// returns an error only for a configuration that can never work: an invalid [MemberConfig], or a
// [*queue.MismatchError]. It must not be called again while it runs.
func (f *Fleet) Work(ctx context.Context, config MemberConfig, h Handler) error {
	config, err := config.withDefaults(f.topology)
	if err != nil {
		return err
	}
	var trouble jsapi.ChangeLog
	for ctx.Err() == nil {
		err := f.session(ctx, config, h, &trouble)
		if mismatch := (*queue.MismatchError)(nil); errors.As(err, &mismatch) {
			return err
		}
		if ctx.Err() == nil {
			trouble.Report(f.log, err)
			jsapi.Pause(ctx, reconcileInterval)
		}
	}
	return nil
}

// session is one membership, from joining until ctx ends or the membership expires.
func (f *Fleet) session(ctx context.Context, config MemberConfig, h Handler, trouble *jsapi.ChangeLog) error {
	if err := f.mayWork(ctx, config.Permissions); err != nil {
		return err
	}
	m, err := f.join(ctx, config)
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
	r := f.newReconciler(calls, m, h, trouble)
	wg.Go(func() {
		if err := m.heartbeat(calls); err != nil {
			lapse(err)
		}
	})
	err = r.run(ctx)
	lapse(errGivenUp)
	wg.Wait()
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), jsapi.CallTimeout)
	defer cancel()
	if leave := m.leave(leaving); leave != nil && err == nil && ctx.Err() == nil {
		err = fmt.Errorf("leave: %w", leave)
	}
	return err
}
