package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// publish compares our publisher, which validates each event and gives it an id, to nats.go's own,
// which does neither.
func publish(ctx context.Context, b *bench) ([]row, error) {
	var ratios []float64
	disturbed, err := b.repeat(ctx, b.rounds, func(round int) (others float64, keep func(), err error) {
		ours, plain, err := b.publishTurns(ctx, round)
		r := ratio(plain.elapsed, ours.elapsed)
		b.say("publish, round %d: ours %.0f/s, nats.go's %.0f/s, ratio %.3f (others %.0f%% and %.0f%%)", round+1,
			b.published(ours), b.published(plain), r, 100*ours.others(), 100*plain.others())
		return max(ours.others(), plain.others()), func() { ratios = append(ratios, r) }, err
	})
	if err != nil {
		return nil, err
	}
	return []row{{
		what:     "publishing, against nats.go's PublishAsync",
		goal:     "at least 0.80",
		measured: fmt.Sprintf("%.2f (median of %d rounds%s)", median(ratios), len(ratios), disturbed),
		pass:     median(ratios) >= 0.80,
	}}, nil
}

// published returns the events a second in a turn.
func (b *bench) published(u used) float64 { return float64(b.events-b.warmUp) / u.elapsed.Seconds() }

// publishTurns measures both; in even rounds ours goes first.
func (b *bench) publishTurns(ctx context.Context, round int) (ours, plain used, err error) {
	for turn := range 2 {
		if turn == round%2 {
			ours, err = b.publishTurn(ctx, publishOurs)
		} else {
			plain, err = b.publishTurn(ctx, publishNATS)
		}
		if err != nil {
			return ours, plain, err
		}
	}
	return ours, plain, nil
}

type publishing func(ctx context.Context, s *site, bodies [][]byte) error

// publishTurn measures one publisher on a site of its own.
func (b *bench) publishTurn(ctx context.Context, publish publishing) (u used, err error) {
	ctx, s, err := open(ctx, nil, nil)
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	bodies := make([][]byte, b.events)
	for i := range bodies {
		bodies[i] = userEvent(i)
	}
	if err := publish(ctx, s, bodies[:b.warmUp]); err != nil {
		return u, err
	}
	before, err := s.meter()
	if err != nil {
		return u, err
	}
	if err := publish(ctx, s, bodies[b.warmUp:]); err != nil {
		return u, err
	}
	after, err := s.meter()
	return after.less(before), err
}

func publishOurs(ctx context.Context, s *site, bodies [][]byte) error {
	p := s.queue.NewPublisher(queue.PublisherConfig{})
	var results []*queue.Result
	for _, body := range bodies {
		result, err := p.PublishAsync(ctx, body)
		if err != nil {
			return errors.Join(err, p.Close(ctx))
		}
		results = append(results, result)
	}
	if err := p.Close(ctx); err != nil {
		return err
	}
	for _, result := range results {
		if _, err := result.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

func publishNATS(ctx context.Context, s *site, bodies [][]byte) error {
	js, err := jetstream.New(s.nc)
	if err != nil {
		return err
	}
	return publishPlainly(ctx, js, len(bodies), func(i int) (string, []byte) {
		return queue.Topology{}.Subject(userName(i)), bodies[i] // any key of this form will do
	})
}
