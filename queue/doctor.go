package queue

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// ConnInfo describes the connection to NATS.
type ConnInfo struct {
	URL     string // of the connected server, without user and password
	Version string // of that server
	// TLS is the version, such as "TLS 1.3". Expires is when the first certificate of the server's
	// chain expires. Both are zero without TLS.
	TLS     string
	Expires time.Time
	// Trip is the median round trip of five pings.
	Trip time.Duration
	// MaxEvent is the largest event that can be published here, including headers: limited by the
	// server's max_payload, and never more than MaxMessageBytes.
	MaxEvent int64
	// Inboxes are the subjects that receive replies: _INBOX.> unless a prefix is configured.
	Inboxes string
}

// ConnInfo returns details of the connection. It blocks for five round trips.
func (i *Inspector) ConnInfo() (ConnInfo, error) {
	var trips []time.Duration
	for range 5 {
		sent := time.Now()
		if err := i.api.Flush(context.Background()); err != nil { // a ping, which the server answers only after everything sent before
			return ConnInfo{}, fmt.Errorf("ping NATS: %w", err)
		}
		trips = append(trips, time.Since(sent))
	}
	slices.Sort(trips)
	l := ConnInfo{Version: i.api.NATS.ConnectedServerVersion(), Trip: trips[len(trips)/2], MaxEvent: maxEvent(i.api.NATS.MaxPayload()), Inboxes: i.api.Inboxes()}
	l.URL, _ = hosts(i.api.NATS.ConnectedUrl()) // Connect has accepted it
	if state, err := i.api.NATS.TLSConnectionState(); err == nil {
		l.TLS = tls.VersionName(state.Version)
		for i, cert := range state.PeerCertificates {
			if i == 0 || cert.NotAfter.Before(l.Expires) {
				l.Expires = cert.NotAfter
			}
		}
	}
	return l, nil
}

// StreamState is the state of one of the pipeline's streams.
type StreamState struct {
	Name        string
	Err         error    // reading failed; then nothing else is known
	Missing     bool     // a worker creates it, if MayCreate
	MayCreate   bool     // of a missing one
	Differences []Change // from the configuration that this pipeline needs

	Messages, Bytes       uint64
	MaxMessages, MaxBytes int64         // 0 is no limit
	MaxAge                time.Duration // 0 is no limit
	Oldest                time.Time     // zero without messages
}

// InspectStreams reads the state of each stream and changes nothing: first the work stream, then
// the dead-letter stream. An error says that JetStream is not available. It blocks for two round
// trips per stream, and at most for some seconds if a stream has no leader.
func (i *Inspector) InspectStreams(ctx context.Context) ([]StreamState, error) {
	var all []StreamState
	for _, want := range i.topology.streams(i.api.NATS.MaxPayload()) {
		s, err := i.inspectStream(ctx, want)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func (i *Inspector) inspectStream(ctx context.Context, want jetstream.StreamConfig) (StreamState, error) {
	s := StreamState{Name: want.Name}
	info, err := i.mayInspect(ctx, want.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		s.Missing = true
		s.MayCreate, err = i.api.IsPermitted(ctx, jsapi.ToRequest("STREAM.CREATE."+want.Name))
		return s, err
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return s, errors.New("JetStream is not enabled for this account")
	case errors.Is(err, nats.ErrNoResponders):
		return s, errors.New("JetStream is not enabled on this server")
	case err != nil:
		s.Err = err
		return s, nil
	}
	s.Differences = compare(info.Config, want)
	s.Messages, s.Bytes = info.State.Msgs, info.State.Bytes
	s.MaxMessages, s.MaxBytes, s.MaxAge = max(0, info.Config.MaxMsgs), max(0, info.Config.MaxBytes), info.Config.MaxAge
	if s.Messages > 0 {
		s.Oldest = info.State.FirstTime
	}
	return s, nil
}

// mayInspect is StreamInfo, but reports a missing permission at once.
func (i *Inspector) mayInspect(ctx context.Context, stream string) (*jsapi.DatedInfo, error) {
	if err := i.api.Require(ctx, jsapi.ToRequest("STREAM.INFO."+stream)); err != nil {
		return nil, err
	}
	return i.api.StreamInfo(ctx, stream, "")
}

// Clock describes the server's clock, as far as it can be known from here.
type Clock struct {
	Ahead time.Duration // of this machine's clock; negative if it is behind
	Trip  time.Duration // round trip of the best reading: Ahead is accurate to half of it
	// Apart is the smallest possible difference between the clocks of the cluster's servers that
	// currently lead the pipeline's streams. It says nothing about other servers.
	Apart time.Duration
}

// ReadClock compares the clock of the server that leads the bucket with this machine's, and with
// the clocks of the other streams' leaders. It blocks for some round trips.
func (i *Inspector) ReadClock(ctx context.Context) (Clock, error) {
	bucket := i.api.BucketStream()
	if _, err := i.mayInspect(ctx, bucket); err != nil {
		return Clock{}, err
	}
	best := Clock{Trip: time.Hour}
	var all []Clock
	for _, stream := range append(i.topology.streams(i.api.NATS.MaxPayload()), make([]jetstream.StreamConfig, 2)...) {
		name := cmp.Or(stream.Name, bucket) // the bucket three times
		sent := time.Now()
		info, err := i.api.StreamInfo(ctx, name, "")
		if err != nil {
			return Clock{}, err
		}
		trip := time.Since(sent)
		c := Clock{Ahead: info.Time.Sub(sent.Add(trip / 2)), Trip: trip}
		if all = append(all, c); name == bucket && trip < best.Trip {
			best = c
		}
	}
	best.Apart = apart(all)
	return best, nil
}

// apart is how far the clock readings certainly differ, however each round trip divides into its
// two directions.
func apart(clocks []Clock) (least time.Duration) {
	for _, a := range clocks {
		for _, b := range clocks {
			least = max(least, a.Ahead-b.Ahead-(a.Trip+b.Trip)/2)
		}
	}
	return least
}

// Account is the NATS account's JetStream usage and limits; a limit of 0 is none.
type Account struct {
	Bytes, MaxBytes         int64 // on disk
	Streams, MaxStreams     int
	Consumers, MaxConsumers int
}

// Account reads the account's usage. It blocks for two round trips.
func (i *Inspector) Account(ctx context.Context) (Account, error) {
	if err := i.api.Require(ctx, jsapi.ToRequest("INFO")); err != nil {
		return Account{}, err
	}
	info, err := i.api.JetStream.AccountInfo(ctx)
	if err != nil {
		return Account{}, fmt.Errorf("read the account's usage: %w", err)
	}
	tier := info.Tier
	if of, ok := info.Tiers[fmt.Sprintf("R%d", i.topology.Replicas)]; ok {
		tier = of
	}
	return Account{
		Bytes: int64(tier.Store), MaxBytes: max(0, tier.Limits.MaxStore),
		Streams: tier.Streams, MaxStreams: max(0, tier.Limits.MaxStreams),
		Consumers: tier.Consumers, MaxConsumers: max(0, tier.Limits.MaxConsumers),
	}, nil
}

// Progress is [Queue.Status] without the dead-letter reasons. It needs only the permissions of a
// worker, and little time.
func (i *Inspector) Progress(ctx context.Context) (*Status, error) {
	s, err := i.progress(ctx)
	return s, err
}

// RateBounds describes how evenly spaced calls, with a burst after a pause, keep a limit.
type RateBounds struct {
	Burst     int
	Worst     int     // maximum calls in any window
	Sustained float64 // calls per window in the long run
}

// Bounds describes how this limit is kept, by a fleet or by a replica on its own, which pays
// for the burst with some of the rate: see [Rate.Interval]. A burst of 0 is the default. An
// unlimited rate has a zero RateBounds.
func (r Rate) Bounds(burst int, alone bool) RateBounds {
	p := r.schedule(burst)
	if p.unlimited() {
		return RateBounds{}
	}
	interval := p.interval
	if alone {
		interval = r.Interval(p.burst)
	}
	return RateBounds{Burst: p.burst, Worst: r.Calls, Sustained: float64(r.Window) / float64(interval)}
}
