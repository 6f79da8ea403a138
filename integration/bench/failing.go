package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

const sickUser = "sick"

// failing makes healthy users wait behind the huge backlog of one user whose calls all fail. All
// events are published on the plain subject, which is one partition.
func failing(ctx context.Context, b *bench) ([]row, error) {
	ctx, s, err := open(ctx, nil, []string{"-stand-in", "-fault", "status=503,user=" + sickUser})
	if err != nil {
		return nil, err
	}
	took, most, err := b.serveBehind(ctx, s)
	if err = errors.Join(err, s.close()); err != nil {
		return nil, err
	}
	return []row{{
		what:     fmt.Sprintf("%d users behind one failing user's backlog of %s", b.healthy, mib(int64(b.sickBytes))),
		goal:     "served within 10 s, memory under 250 MiB",
		measured: fmt.Sprintf("%.1f s from the worker's start, peak %s", took.Seconds(), mib(most)),
		pass:     took < 10*time.Second && most < 250<<20,
	}}, nil
}

func (b *bench) serveBehind(ctx context.Context, s *site) (took time.Duration, most int64, err error) {
	sick := b.sickBytes / b.sickEvent
	err = s.fillPlain(ctx, sick+b.healthy, func(i int) []byte {
		if i < sick {
			return event(sickUser, b.sickEvent)
		}
		return userEvent(i)
	})
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	worker, err := s.consumer(ctx, "work")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, worker.stop()) }()
	if _, err := s.accepted(ctx, "", b.healthy); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	most, err = peak(ctx, worker, b.sickTime) // includes some retries
	return took, most, err
}

// fillPlain is fill on the plain subject, for a client that cannot encode a key.
func (s *site) fillPlain(ctx context.Context, n int, event func(i int) []byte) error {
	js, err := jetstream.New(s.nc)
	if err != nil {
		return err
	}
	return publishPlainly(ctx, js, n, func(i int) (string, []byte) {
		return queue.Topology{}.PlainSubject(), event(i)
	})
}

// stallWait is how long the server may take to acknowledge publishes in flight. The default of
// nats.go, 200 ms, is too short on a busy machine.
const stallWait = 10 * time.Second

// publishPlainly publishes with nats.go's PublishAsync, and waits until all messages are stored.
func publishPlainly(ctx context.Context, js jetstream.JetStream, n int, event func(i int) (subject string, body []byte)) error {
	var acks []jetstream.PubAckFuture
	for i := range n {
		subject, body := event(i)
		ack, err := js.PublishAsync(subject, body, jetstream.WithStallWait(stallWait))
		if err != nil {
			return err
		}
		acks = append(acks, ack)
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return err
		}
	}
	return nil
}
