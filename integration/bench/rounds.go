package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"time"
)

const (
	// tolerated is the part of the processors that others may use while we compare.
	tolerated = 0.10
	// patience is how long we wait in all for others to finish what they are at.
	patience = 2 * time.Minute
)

// repeat plays as many rounds as are asked for. On a shared machine the others decide who is
// faster: so a round waits until they do little, and one in which they used much of the
// processors is not kept but played again. When patience is at an end every round is
// kept, and what is measured says so.
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
			b.say("   others used too much of the processors: once more")
			continue
		case others > tolerated:
			disturbed = ", on a busy machine"
		}
		keep()
		kept++
	}
	return disturbed, nil
}

// calm blocks until the processors are idle but for what is tolerated, or ctx ends.
func calm(ctx context.Context) {
	const look = 500 * time.Millisecond
	for {
		before, errBefore := busyTime()
		if watch(ctx, look) != nil {
			return
		}
		after, errAfter := busyTime()
		if errBefore != nil || errAfter != nil || after-before < time.Duration(tolerated*float64(runtime.NumCPU())*float64(look)) {
			return // an error will be seen by who measures
		}
	}
}

// used is what has been used by a moment, or between two.
type used struct {
	elapsed time.Duration // since the site was opened
	// processor time
	machine, self, consumer, nats, api time.Duration
}

// all is the processor time of what is measured.
func (u used) all() time.Duration { return u.consumer + u.nats + u.api }

// others is the part of the processors that went to processes that are not ours.
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

// meter reads what has been used so far, by all consumers together.
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
