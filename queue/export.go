package queue

import (
	"errors"
	"maps"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ExportHeader is what an export of the letter must tell, besides the event, so that the event can be
// published as the old one that it is: see [WithExport].
func (l *DeadLetter) ExportHeader() map[string][]string {
	h := nats.Header{}
	for name, values := range l.Header {
		h[name] = slices.Clone(values)
	}
	h.Set(headerOrigin, l.Origin.String())
	if !l.Tracked {
		h.Set(headerUntracked, "true")
	}
	return h
}

var errNotExported = errors.New("headers: tell no Dead-Origin, so nobody knows how old the event is: export the dead letter again")

// WithExport publishes the event of a dead letter that was exported, whose header this is. It is as
// old as it was: what newer events have set since stays. Unlike a replay it may be published twice,
// and leaves the dead letter where it is.
func WithExport(header map[string][]string) (PublishOption, error) {
	h := nats.Header(maps.Clone(header))
	origin, err := ParseAge(h.Get(headerOrigin))
	if err != nil {
		return nil, errNotExported
	}
	h.Set(jetstream.SequenceHeader, "0") // it lies in no stream
	h.Set(jetstream.TimeStampHeaer, h.Get(headerAt))
	h.Del(jetstream.SubjectHeader)
	l, err := readLetter(&nats.Msg{Header: h})
	if err != nil {
		return nil, err
	}
	l.complete(Topology{})
	l.Origin, l.Tracked = origin, h.Get(headerUntracked) == ""
	past := sending{letter: l}.past("", false)
	return withPast(past, l), nil
}
