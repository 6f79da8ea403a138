package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"time"
)

const (
	// tolerated is the part of the processors that other processes may use during a comparison.
	tolerated = 0.10
	// patience is how long we wait in all for other processes to become idle.
	patience = 2 * time.Minute
)

// repeat plays this many rounds. On a shared machine other processes would decide which is faster:
// so a round waits until they do little, and a round in which they used much of the processors is
// repeated. Once patience is exhausted every round counts, and the row says so.
func (b *bench) repeat(ctx context.Context, rounds int, play func(round int) (others float64, keep func(), err error)) (disturbed string, err error) {
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for kept := 0; kept < rounds; {
		if !b.quick {
			calm(patient)
		}
		others, keep, err := play(kept)
		switch {
		case err != nil:
			return "", err
		case others > tolerated && patient.Err() == nil && !b.quick:
			b.say("   other processes used too much of the processors: repeating the round")
			continue
		case others > tolerated:
			disturbed = ", on a busy machine"
		}
		keep()
		kept++
	}
	return disturbed, nil
}

// calm blocks until other processes use no more than is tolerated, or ctx ends.
func calm(ctx context.Context) {
	const look = 500 * time.Millisecond
	for {
		before, errBefore := busyTime()
		if watch(ctx, look) != nil {
			return
		}
		after, errAfter := busyTime()
		if errBefore != nil || errAfter != nil || after-before < time.Duration(tolerated*float64(runtime.NumCPU())*float64(look)) {
			return // the measurement itself will report the error
		}
	}
}

// used is the time used by a moment, or between two.
type used struct {
	elapsed time.Duration // since the site was opened
	// processor time
	machine, self, consumer, nats, api time.Duration
}

// all returns the processor time of all processes under test.
func (u used) all() time.Duration { return u.consumer + u.nats + u.api }

// others returns the part of the processors that went to other processes.
func (u used) others() float64 {
	foreign := u.machine - u.all() - u.self
	return max(0, foreign.Seconds()/u.elapsed.Seconds()/float64(runtime.NumCPU()))
}

func (u used) less(v used) used {
	return used{
		elapsed: u.elapsed - v.elapsed, machine: u.machine - v.machine, self: u.self - v.self,
		consumer: u.consumer - v.consumer, nats: u.nats - v.nats, api: u.api - v.api,
	}
}

// meter returns the time used so far, with all consumers together.
func (s *site) meter(consumers ...*process) (u used, err error) {
	errs := make([]error, 4, 4+len(consumers))
	u.elapsed = time.Since(s.opened)
	u.machine, errs[0] = busyTime()
	u.self, errs[1] = processorTime(os.Getpid())
	u.nats, errs[2] = processorTime(s.nats.pid())
	u.api, errs[3] = processorTime(s.api.pid())
	for _, p := range consumers {
		t, err := processorTime(p.pid())
		u.consumer += t
		errs = append(errs, err)
	}
	return u, errors.Join(errs...)
}
