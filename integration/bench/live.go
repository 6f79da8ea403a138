package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// live measures how long live events take from their publication to their call: alone, while backfill
// waits, and in a pipeline without classes, where what waits is live, too. It also measures what the
// backfill costs live events without a limit.
func live(ctx context.Context, b *bench) (rows []row, err error) {
	for _, replicas := range []int{1, 3, 10} {
		f := fleet{replicas: replicas, rate: b.liveRate}
		alone, err := f.delays(ctx, b.liveTime, 0)
		if err != nil {
			return rows, err
		}
		b.say("live: %v, nothing else waits: %v", f, alone)
		behind, err := f.delays(ctx, b.liveTime, b.backfill, queue.AsBackfill())
		if err != nil {
			return rows, err
		}
		b.say("live: %v, %d users of backfill wait: %v", f, b.backfill, behind)
		rows = append(rows, b.liveRow(f, alone, behind))
	}
	plain, err := b.plainRow(ctx)
	if err != nil {
		return rows, err
	}
	unlimited, err := b.unlimitedRow(ctx)
	return append(rows, plain, unlimited), err
}

// delays are the times from publication to call of live events, while a fleet works.
type delays struct {
	all []time.Duration // sorted
	usage
}

func (d delays) String() string {
	text := fmt.Sprintf("median %v, 99th percentile %v, worst %v of %d events", d.at(0.5), d.at(0.99), d.at(1), len(d.all))
	if d.part > 0 {
		text += fmt.Sprintf(", %.1f%% of the limit used, at most %d in any window", 100*d.part, d.most)
	}
	return text
}

// at returns the delay that this part of the events does not exceed.
func (d delays) at(part float64) time.Duration {
	return d.all[int(math.Ceil(part*float64(len(d.all))))-1].Round(time.Millisecond)
}

// delays publishes live events for this long, while so many others wait, each of another user.
func (f fleet) delays(ctx context.Context, long time.Duration, waiting int, options ...queue.PublishOption) (d delays, err error) {
	ctx, s, err := open(ctx, nil, []string{"-stand-in", "-window", f.rate.Window.String(), "-delays"})
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.fill(ctx, waiting, userEvent, options...); err != nil {
		return d, err
	}
	log, err := s.watchLedger()
	if err != nil {
		return d, err
	}
	r, err := s.work(ctx, f.replicas, "-rate", f.rate.String())
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	if waiting == 0 {
		err = r.share(ctx)
	} else {
		_, err = f.begin(ctx, s, r, log)
	}
	if err != nil {
		return d, err
	}
	// A fleet begins at a pace that is safe whatever was called before it: that is not measured.
	if err := watch(ctx, 2*f.rate.Window); err != nil {
		return d, err
	}
	before, err := s.glance(ctx, r, log)
	if err != nil {
		return d, err
	}
	published, err := s.publishLive(ctx, long, liveEvent)
	if err != nil {
		return d, err
	}
	after, err := s.glance(ctx, r, log)
	if err != nil {
		return d, err
	}
	if waiting > 0 {
		d.usage = f.usage(before, after)
	}
	d.all, err = s.delays(ctx, published)
	return d, err
}

// liveInterval is the time between two live events that are published beside backfill.
const liveInterval = 500 * time.Millisecond

// publishLive publishes the events event(0), event(1) and so on for this long, one each interval.
func (s *site) publishLive(ctx context.Context, long time.Duration, event func(i int) []byte) (published int, err error) {
	p := s.queue.NewPublisher(queue.PublisherConfig{})
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	tick := time.NewTicker(liveInterval)
	defer tick.Stop()
	for ; published < int(long/liveInterval); published++ {
		if _, err := p.Publish(ctx, event(published)); err != nil {
			return published, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return published, context.Cause(ctx)
		}
	}
	return published, nil
}

// liveEvent carries the time of its publication.
func liveEvent(i int) []byte {
	return fmt.Appendf(nil, `{"user_id":"live-%07d","metadata":{"published":%d}}`, i, time.Now().UnixNano())
}

// delays waits until the API has seen so many live events, and returns what they took.
func (s *site) delays(ctx context.Context, events int) (all []time.Duration, err error) {
	err = poll(ctx, func() (bool, error) {
		err := s.ask(ctx, "/delays", &all)
		return len(all) >= events, err
	})
	slices.Sort(all)
	return all, err
}

// arrivals notes how long live events were under way.
type arrivals struct {
	mu     sync.Mutex
	delays []time.Duration
}

// note passes calls to h, and notes the delay of those with a live event.
func (a *arrivals) note(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the caller has gone
		}
		var event struct {
			Metadata struct {
				Published int64 `json:"published"`
			} `json:"metadata"`
		}
		if json.Unmarshal(body, &event) == nil && event.Metadata.Published > 0 {
			a.mu.Lock()
			a.delays = append(a.delays, now.Sub(time.Unix(0, event.Metadata.Published)))
			a.mu.Unlock()
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(w, r)
	})
}

func (a *arrivals) serve(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	reply(w, append([]time.Duration{}, a.delays...))
}

// longestDelay is the promise: a live event is called within this time, 99 times in 100.
const longestDelay = time.Second

func (b *bench) liveRow(f fleet, alone, behind delays) row {
	return row{
		what: fmt.Sprintf("publication to call of 2 live events a second at %v, %v, behind %d users of backfill", f.rate, f, b.backfill),
		goal: fmt.Sprintf("99th percentile below %v, 99%% of the limit used, never over", longestDelay),
		measured: fmt.Sprintf("median %v, 99th percentile %v, worst %v of %d (alone: %v, %v, %v); %.1f%% used, at most %d in any window",
			behind.at(0.5), behind.at(0.99), behind.at(1), len(behind.all), alone.at(0.5), alone.at(0.99), alone.at(1), 100*behind.part, behind.most),
		pass: behind.at(0.99) < longestDelay && behind.part >= 0.99 && behind.most <= f.rate.Calls,
	}
}

// plainRow measures the same with one class. It judges nothing: the delay is the time that what waits
// takes, and grows with it.
func (b *bench) plainRow(ctx context.Context) (row, error) {
	f := fleet{replicas: 1, rate: b.liveRate}
	d, err := f.delays(ctx, max(b.liveTime/10, 2*liveInterval), b.plainWaiting)
	if err != nil {
		return row{}, err
	}
	return row{
		what:     fmt.Sprintf("the same, 1 replica, where %d other users wait as live events: a pipeline without classes", b.plainWaiting),
		goal:     "",
		measured: fmt.Sprintf("median %v, 99th percentile %v; with %d users waiting it would be %v", d.at(0.5), d.at(0.99), b.backfill, f.rate.Window*time.Duration(b.backfill)/time.Duration(f.rate.Calls)),
		pass:     true,
	}, nil
}

// unlimitedRow compares live events without a limit, while backfill waits and without it. Each call then
// also records what the event sets, for the backfill that comes after.
func (b *bench) unlimitedRow(ctx context.Context) (row, error) {
	var speed, cost []float64
	disturbed, err := b.repeat(ctx, b.rounds, func(round int) (others float64, keep func(), err error) {
		turns := map[bool]load{}
		for turn := range 2 {
			backfill := (turn+round)%2 == 0
			if turns[backfill], err = b.unlimitedTurn(ctx, backfill); err != nil {
				return 0, nil, err
			}
		}
		alone, behind := turns[false], turns[true]
		s, c := behind.perSecond()/alone.perSecond(), ratio(behind.consumer, alone.consumer)
		b.say("live, no limit, round %d: alone %v; backfill waits %v; ratios: speed %.2f, processor time %.2f", round+1, alone, behind, s, c)
		return max(alone.others(), behind.others()), func() { speed, cost = append(speed, s), append(cost, c) }, nil
	})
	if err != nil {
		return row{}, err
	}
	return row{
		what:     fmt.Sprintf("%d live events without a limit while %d users of backfill wait, against none", b.unlimitedLive, b.unlimitedLive),
		goal:     "",
		measured: fmt.Sprintf("%.2f of the throughput, %.2f of the worker's processor time (median of %d rounds%s)", median(speed), median(cost), len(speed), disturbed),
		pass:     true,
	}, nil
}

// unlimitedTurn measures from the first call until all live events have been called for.
func (b *bench) unlimitedTurn(ctx context.Context, backfill bool) (l load, err error) {
	ctx, s, err := open(ctx, nil, []string{"-delays"})
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if backfill {
		if err := s.fill(ctx, b.unlimitedLive, userEvent, queue.AsBackfill()); err != nil {
			return l, err
		}
	}
	if err := s.fill(ctx, b.unlimitedLive, liveEvent); err != nil {
		return l, err
	}
	consumer, err := s.consumer(ctx, "work")
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, consumer.stop()) }()
	first, err := s.accepted(ctx, "", 1)
	if err != nil {
		return l, err
	}
	before, err := s.meter(consumer)
	if err != nil {
		return l, err
	}
	if _, err := s.delays(ctx, b.unlimitedLive); err != nil {
		return l, err
	}
	after, err := s.meter(consumer)
	return load{b.unlimitedLive - first.Calls, after.less(before)}, err
}
