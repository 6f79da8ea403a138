package inspector

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// ExportHeader returns the headers that an export of the letter needs besides the event, so that
// the event can be published with its old position: see [WithExport]. Only workers of this pipeline
// trust them. The first call blocks for a round trip, and needs the permission to publish to
// $JS.API.STREAM.MSG.GET.KV_<bucket>.
func (i *Inspector) ExportHeader(ctx context.Context, l *deadletter.Letter) (map[string][]string, error) {
	key := i.letters.CachedSeal()
	if key == nil {
		var err error
		if key, err = i.letters.LoadSeal(ctx); err != nil {
			return nil, err
		}
	}
	h := nats.Header{}
	for name, values := range l.Header {
		h[name] = slices.Clone(values)
	}
	past := deadletter.ReplayInfo{Origin: l.Origin, Untracked: !l.Tracked}
	h.Set(deadletter.HeaderOrigin, l.Origin.String())
	h.Set(deadletter.HeaderSeal, past.Mark(key, nil))
	if past.Untracked {
		h.Set(deadletter.HeaderUntracked, "true")
	}
	return h, nil
}

var (
	errNotExported = errors.New("headers: Dead-Origin is missing, so the position of the event is unknown: export the dead letter again")
	errNotSealed   = errors.New("headers: Dead-Seal is missing, so no worker would trust the position of the event: export the dead letter again")
)

// WithExport publishes the event of an exported dead letter, given its header. The event keeps its
// position: values that newer events have set since remain. Unlike a replay it may be published
// twice, and leaves the dead letter where it is. To a pipeline other than the letter's own, the
// event is new.
func WithExport(header map[string][]string) ([]queue.PublishOption, error) {
	h := nats.Header(maps.Clone(header))
	origin, err := deadletter.ParsePosition(h.Get(deadletter.HeaderOrigin))
	if err != nil {
		return nil, errNotExported
	}
	sealed := jsapi.Clean(h.Get(deadletter.HeaderSeal))
	if sealed == "" {
		return nil, errNotSealed
	}
	h.Set(jetstream.SequenceHeader, "0") // it is in no stream
	h.Set(jetstream.TimeStampHeaer, h.Get(deadletter.HeaderAt))
	h.Del(jetstream.SubjectHeader)
	l, err := deadletter.ReadLetter(&nats.Msg{Header: h})
	if err != nil {
		return nil, err
	}
	l.Complete(queue.Topology{})
	l.Origin, l.Tracked = origin, h.Get(deadletter.HeaderUntracked) == ""
	past := outgoing{letter: l}.past()
	past.Sealed = sealed
	return past.Options(l), nil
}
