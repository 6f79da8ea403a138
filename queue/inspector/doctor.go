package inspector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// StreamState is the state of one of the pipeline's streams.
type StreamState struct {
	Name        string
	Err         error          // why reading failed; then nothing else is known
	Missing     bool           // a worker creates it, if MayCreate
	MayCreate   bool           // of a missing one
	Refusal     error          // why the server would not create a missing one; nil if it would, or is not known
	Differences []queue.Change // from the configuration that this pipeline needs

	Messages, Bytes       uint64        // that it holds
	MaxMessages, MaxBytes int64         // 0 is no limit
	MaxAge                time.Duration // 0 is no limit
	Oldest                time.Time     // zero without messages

	Consumers, MaxConsumers int // 0 is no limit of the stream's own: see Account
}

// InspectStreams reads the state of each stream and changes nothing: first the work stream, then
// the dead-letter stream. An error says that JetStream is not available. It blocks for two round
// trips per stream, and at most for some seconds if a stream has no leader.
func (i *Inspector) InspectStreams(ctx context.Context) ([]StreamState, error) {
	var all []StreamState
	for _, want := range i.topology.StreamConfigs(i.api.NATS.MaxPayload()) {
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
		s.Refusal = i.queue.CreateRefusal(ctx, want)
		return s, err
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return s, errors.New("JetStream is not enabled for this account")
	case errors.Is(err, nats.ErrNoResponders):
		return s, errors.New("JetStream is not enabled on this server")
	case err != nil:
		s.Err = err
		return s, nil
	}
	s.Differences = queue.Compare(info.Config, want)
	s.Messages, s.Bytes = info.State.Msgs, info.State.Bytes
	s.Consumers, s.MaxConsumers = info.State.Consumers, max(0, info.Config.MaxConsumers)
	s.MaxMessages, s.MaxBytes, s.MaxAge = max(0, info.Config.MaxMsgs), max(0, info.Config.MaxBytes), info.Config.MaxAge
	if s.Messages > 0 {
		s.Oldest = info.State.FirstTime
	}
	return s, nil
}

// mayInspect is StreamInfo, but reports a missing permission at once.
func (i *Inspector) mayInspect(ctx context.Context, stream string) (*jetstream.StreamInfo, error) {
	if err := i.api.Require(ctx, jsapi.ToRequest("STREAM.INFO."+stream)); err != nil {
		return nil, err
	}
	return i.api.StreamInfo(ctx, stream, "")
}

// Clock describes the server's clock, as far as it can be known from here.
type Clock struct {
	Ahead time.Duration // how far it is ahead of this machine's; negative if it is behind
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
	for _, stream := range append(i.topology.StreamConfigs(i.api.NATS.MaxPayload()), make([]jetstream.StreamConfig, 2)...) {
		name := cmp.Or(stream.Name, bucket) // the bucket three times
		sent := time.Now()
		info, err := i.api.StreamInfo(ctx, name, "")
		if err != nil {
			return Clock{}, err
		}
		trip := time.Since(sent)
		c := Clock{Ahead: info.TimeStamp.Sub(sent.Add(trip / 2)), Trip: trip}
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
	Bytes, MaxBytes     int64 // on disk
	Streams, MaxStreams int   // of all pipelines
	MaxConsumers        int   // of each stream
	LimitRequired       bool  // only streams with a limit of bytes can be created
}

// Account reads the account's usage and limits. It blocks for two round trips, and needs the
// permission to publish to $JS.API.INFO.
func (i *Inspector) Account(ctx context.Context) (Account, error) {
	if err := i.api.Require(ctx, jsapi.ToRequest("INFO")); err != nil {
		return Account{}, err
	}
	tier, err := i.api.AccountTier(ctx, i.topology.Replicas)
	if err != nil {
		return Account{}, fmt.Errorf("read the account's usage: %w", err)
	}
	return Account{
		Bytes: int64(tier.Store), MaxBytes: max(0, tier.Limits.MaxStore),
		Streams: tier.Streams, MaxStreams: max(0, tier.Limits.MaxStreams),
		MaxConsumers: max(0, tier.Limits.MaxConsumers), LimitRequired: tier.Limits.MaxBytesRequired,
	}, nil
}

// Progress is [Inspector.Status] without the reasons of the dead letters. It needs only the
// permissions of a worker, and blocks for a few round trips.
func (i *Inspector) Progress(ctx context.Context) (*Status, error) {
	s, err := i.progress(ctx)
	return s, err
}

// MissingPermissions returns those of some permissions that this connection's user lacks, with the
// connection's inbox prefix. It blocks for a few round trips if none is missing, otherwise for one
// or two each. It probes all of them with messages that no stream stores and no API executes. The
// server reports a denial at once, while a worker's request would just get no answer.
func (i *Inspector) MissingPermissions(ctx context.Context, permissions []jsapi.Permission) ([]jsapi.Permission, error) {
	return i.api.MissingPermissions(ctx, i.api.Own(permissions))
}
