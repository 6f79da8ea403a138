package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// site is a NATS server with the product's streams, and an API: each in a process of its own, on
// free ports. close removes everything that they stored.
type site struct {
	nats, api       *process
	natsURL, apiURL string
	secureURL       string // of the API, over TLS
	ways            *ways  // networks of the consumers; nil connects them directly
	dir             string
	opened          time.Time
	fail            context.CancelCauseFunc
	nc              *nats.Conn
	queue           *queue.Queue
}

// open starts a site. The arguments are for [serveNATS] and for [serveAPI]. The returned context
// ends with ctx, and also when one of the site's processes dies, which is then its cause.
func open(ctx context.Context, natsArgs, apiArgs []string) (context.Context, *site, error) {
	ctx, fail := context.WithCancelCause(ctx)
	s := &site{opened: time.Now(), fail: fail}
	if err := s.start(ctx, natsArgs, apiArgs); err != nil {
		return ctx, nil, errors.Join(err, s.close())
	}
	return ctx, s, nil
}

func (s *site) start(ctx context.Context, natsArgs, apiArgs []string) (err error) {
	if s.dir, err = os.MkdirTemp("", "identify-bench-"); err != nil {
		return err
	}
	if s.nats, err = spawn(ctx, s.fail, "serve-nats", append([]string{"-dir", s.dir}, natsArgs...)...); err != nil {
		return err
	}
	if s.natsURL, err = s.nats.line(ctx); err != nil {
		return err
	}
	if err := s.startAPI(ctx, apiArgs...); err != nil {
		return err
	}
	return s.connect(ctx)
}

func (s *site) startAPI(ctx context.Context, args ...string) (err error) {
	if s.api, err = spawn(ctx, s.fail, "serve-api", append([]string{"-trusted", s.trusted()}, args...)...); err != nil {
		return err
	}
	if s.apiURL, err = s.api.line(ctx); err != nil {
		return err
	}
	s.secureURL, err = s.api.line(ctx)
	return err
}

// trusted returns the file of the API's certificate.
func (s *site) trusted() string { return filepath.Join(s.dir, "trusted.pem") }

// otherAPI replaces the site's API.
func (s *site) otherAPI(ctx context.Context, args ...string) error {
	if err := s.api.stop(); err != nil {
		return err
	}
	return s.startAPI(ctx, args...)
}

func (s *site) connect(ctx context.Context) (err error) {
	if s.nc, err = queue.Connect(ctx, queue.ConnectConfig{URL: s.natsURL}); err != nil {
		return err
	}
	if s.queue, err = queue.New(s.nc, queue.Topology{}, nil); err != nil {
		return err
	}
	_, err = s.queue.Setup(ctx, false)
	return err
}

// close ends the site's processes and removes their files.
func (s *site) close() error {
	if s.nc != nil {
		s.nc.Close()
	}
	var errs []error
	for _, p := range []*process{s.api, s.nats} {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	s.ways.close()
	s.fail(nil)
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// consumer starts one of the two consumers, "work" or "loop", on the site.
func (s *site) consumer(ctx context.Context, role string, args ...string) (*process, error) {
	nats, endpoint := s.natsURL, s.apiURL
	if s.ways != nil {
		nats, endpoint = "nats://"+s.ways.nats.Address(), "https://"+s.ways.api.Address()
	}
	return spawn(ctx, s.fail, role, append([]string{"-nats", nats, "-endpoint", endpoint, "-trusted", s.trusted()}, args...)...)
}

// fill publishes n events, the i-th of which is event(i), and waits until all are stored.
func (s *site) fill(ctx context.Context, n int, event func(i int) []byte, options ...queue.PublishOption) error {
	p := s.queue.NewPublisher(queue.PublisherConfig{})
	for i := range n {
		if _, err := p.PublishAsync(ctx, event(i), options...); err != nil {
			return errors.Join(err, p.Close(ctx))
		}
	}
	if err := p.Close(ctx); err != nil {
		return err
	}
	counts, err := s.queue.Counts(ctx)
	if err == nil && counts.Backlog < uint64(n) {
		err = fmt.Errorf("only %d of %d events were stored", counts.Backlog, n)
	}
	return err
}

// fillRaw publishes n messages as they are, each with a key of its own, and waits until all are
// stored.
func (s *site) fillRaw(ctx context.Context, n int, message func(i int) *nats.Msg) error {
	js, err := jetstream.New(s.nc, jetstream.WithPublishAsyncMaxPending(64))
	if err != nil {
		return err
	}
	err = publishAll(ctx, js, n, func(i int) *nats.Msg {
		m := message(i)
		m.Subject = s.queue.Topology().Subject(userName(i))
		return m
	})
	if err != nil {
		return err
	}
	counts, err := s.queue.Counts(ctx)
	if err == nil && counts.Backlog < uint64(n) {
		err = fmt.Errorf("only %d of %d events were stored", counts.Backlog, n)
	}
	return err
}

// publishAll publishes n messages, and waits until the server has answered for all.
func publishAll(ctx context.Context, js jetstream.JetStream, n int, message func(i int) *nats.Msg) error {
	for i := range n {
		if _, err := js.PublishMsgAsync(message(i), jetstream.WithStallWait(time.Minute)); err != nil {
			return err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pollInterval is the shortest time between two checks of a condition.
const pollInterval = 2 * time.Millisecond

// drained blocks until no event is left in the stream.
func (s *site) drained(ctx context.Context) error {
	return poll(ctx, func() (bool, error) {
		counts, err := s.queue.Counts(ctx)
		return counts.Backlog == 0, err
	})
}

// poll blocks until the condition holds or fails, or ctx ends. It waits a hundredth of the time that has
// passed between two checks: often enough for what is measured, and too seldom to slow it down.
func poll(ctx context.Context, holds func() (bool, error)) error {
	for began := time.Now(); ; {
		if ok, err := holds(); ok || err != nil {
			return err
		}
		if err := watch(ctx, max(pollInterval, time.Since(began)/100)); err != nil {
			return err
		}
	}
}

// accepted blocks until the API has accepted n calls of the replica with this key, or n calls in
// all if the key is empty. It returns the state of the count then.
func (s *site) accepted(ctx context.Context, key string, n int) (tallied, error) {
	var t tallied
	err := s.ask(ctx, "/accepted?"+url.Values{"key": {key}, "calls": {strconv.Itoa(n)}}.Encode(), &t)
	return t, err
}

// ask reads from the API's additional endpoints.
func (s *site) ask(ctx context.Context, path string, answer any) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, s.apiURL+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(q)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return json.NewDecoder(resp.Body).Decode(answer)
}
