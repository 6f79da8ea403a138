package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/identify-worker/identify-worker/queue/inspector"
)

// farStop times SIGTERM while the worker reloads the bodies of a long lane, with one round trip
// each.
func farStop(ctx context.Context, b *bench) (row, error) {
	const answer = 100 * time.Millisecond
	var took []time.Duration
	for range b.takeovers {
		d, err := b.stopFar(ctx, answer)
		if err != nil {
			return row{}, fmt.Errorf("SIGTERM: %w", err)
		}
		took = append(took, d)
	}
	b.say("   SIGTERM while bodies are reloaded: %v", took)
	worst := slices.Max(took)
	return row{
		what:     fmt.Sprintf("SIGTERM while the bodies of a user's %d events are reloaded, NATS 20ms away, calls of %v", b.laneEvents, answer),
		goal:     "under 1 s plus the call in flight",
		measured: fmt.Sprintf("%.2f s (worst of %d)", worst.Seconds(), len(took)),
		pass:     worst < time.Second+answer,
	}, nil
}

func (b *bench) stopFar(ctx context.Context, answer time.Duration) (took time.Duration, err error) {
	ctx, s, err := open(ctx, nil, []string{"-latency", answer.String()})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.recede(away(20), away(0)); err != nil {
		return 0, err
	}
	if err := s.fill(ctx, b.laneEvents, func(int) []byte { return event("one", 2<<10) }); err != nil {
		return 0, err
	}
	w, err := s.consumer(ctx, "work")
	if err != nil {
		return 0, err
	}
	// The first call holds the first event; the next, all events that the lane keeps loaded. Then
	// the others have to be reloaded.
	if _, err := s.accepted(ctx, "", 2); err != nil {
		return 0, errors.Join(err, w.stop())
	}
	if err := watch(ctx, 50*time.Millisecond); err != nil { // for the answer and the settlement
		return 0, errors.Join(err, w.stop())
	}
	began := time.Now()
	err = errors.Join(w.signal(syscall.SIGTERM), w.stop())
	return time.Since(began), err
}

// farReplays times the replay of all dead letters of one user.
func farReplays(ctx context.Context, b *bench) (r row, err error) {
	const user = "sick"
	ctx, s, err := open(ctx, nil, []string{"-stand-in", "-fault", "status=422,user=" + user})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.makeDeadLetters(ctx, b.letters, user); err != nil {
		return r, fmt.Errorf("replays: %w", err)
	}
	selection, err := inspector.New(s.queue).Select(ctx, inspector.Filter{}, inspector.SelectConfig{})
	if err != nil {
		return r, err
	}
	if _, err := inspector.New(s.queue).Replay(ctx, selection, inspector.ReplayConfig{}); err != nil {
		return r, err
	}
	if err := s.recede(away(6), away(0)); err != nil {
		return r, err
	}
	began := time.Now()
	w, err := s.consumer(ctx, "work")
	if err != nil {
		return r, err
	}
	patient, cancel := context.WithTimeout(ctx, b.replayPatience)
	defer cancel()
	drained := s.drained(patient)
	took := time.Since(began)
	counts, errCounts := s.queue.Counts(ctx)
	if err := errors.Join(errCounts, w.stop()); err != nil || ctx.Err() != nil {
		return r, errors.Join(err, context.Cause(ctx))
	}
	r = row{
		what:     fmt.Sprintf("%d replays of one user, NATS 6ms away", b.letters),
		goal:     "delivered within 10 s",
		measured: fmt.Sprintf("%.1f s from the worker's start", took.Seconds()),
		pass:     drained == nil && took < 10*time.Second,
	}
	if drained != nil {
		r.measured = fmt.Sprintf("%d still waiting after %v", counts.Backlog, b.replayPatience)
	}
	return r, nil
}

// makeDeadLetters makes n dead letters of a user whom the API refuses, and then lets the API accept
// the user's events.
func (s *site) makeDeadLetters(ctx context.Context, n int, user string) error {
	if err := s.fill(ctx, n, func(int) []byte { return event(user, callBytes) }); err != nil {
		return err
	}
	w, err := s.consumer(ctx, "work")
	if err != nil {
		return err
	}
	if err := errors.Join(s.drained(ctx), w.stop()); err != nil {
		return err
	}
	return s.otherAPI(ctx)
}

// farTakeover makes a replica die in merged calls whose newest events are large: they take a while
// to arrive again, and until then the new holder must not call with the older ones.
func farTakeover(ctx context.Context, b *bench) (r row, err error) {
	ctx, s, err := open(ctx, nil, []string{"-order"})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.fillLarge(ctx, b.large); err != nil {
		return r, err
	}
	dying, err := s.consumer(ctx, "work", "-key", hangs, "-rate", "1000/1s")
	if err != nil {
		return r, err
	}
	var seen ordered
	if err := s.awaitOrder(ctx, &seen, func() bool { return seen.InFlight >= b.large }); err != nil {
		return r, errors.Join(err, dying.stop())
	}
	if err := dying.signal(syscall.SIGKILL); err != nil {
		return r, err
	}
	<-dying.done
	two, err := s.work(ctx, 2)
	if err != nil {
		return r, err
	}
	err = errors.Join(s.awaitOrder(ctx, &seen, func() bool { return seen.Answered >= b.large }), two.stop())
	return row{
		what:     fmt.Sprintf("users set back after a holder died in merged calls with events of 360 KB, 2 new replicas, %d users", b.large),
		goal:     "0",
		measured: fmt.Sprint(seen.Back),
		pass:     seen.Back == 0,
	}, err
}

// fillLarge publishes three events for each of n users. The last of the three is large, with small
// events of other users in between.
func (s *site) fillLarge(ctx context.Context, n int) error {
	const others = 250
	pad := strings.Repeat(`\u00e9`, 60_000)
	for v := 1; v <= 2; v++ {
		err := s.fill(ctx, n, func(i int) []byte { return fmt.Appendf(nil, `{"user_id":"large-%d","metadata":{"v":%d}}`, i, v) })
		if err != nil {
			return err
		}
	}
	return s.fill(ctx, n*(others+1), func(i int) []byte {
		if i%(others+1) == others {
			return fmt.Appendf(nil, `{"user_id":"large-%d","metadata":{"v":3,"pad":"%s"}}`, i/(others+1), pad)
		}
		return fmt.Appendf(nil, `{"user_id":"other-%d","metadata":{"v":1}}`, i)
	})
}

// awaitOrder polls the API's observations until enough holds.
func (s *site) awaitOrder(ctx context.Context, seen *ordered, enough func() bool) error {
	return poll(ctx, func() (bool, error) {
		err := s.ask(ctx, "/order", seen)
		return enough(), err
	})
}
