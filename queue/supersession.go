package queue

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// Supersession describes which of a dead letter's properties newer events of its user have set
// since.
type Supersession struct {
	// Known is whether this is certain: the letter's user can be read, and has been tracked since
	// the letter died. Otherwise a replay dies again, unless the letter is untracked or the replay
	// is forced.
	Known bool
	// Wholly says that a replay would have no properties left, and so makes no call. Partly says
	// that it would have fewer.
	Wholly, Partly bool
	// Properties are the event's properties, in its order.
	Properties []PropertyStanding
}

// PropertyStanding is a property of an event, and whether a newer event has set it since.
type PropertyStanding struct {
	Path       string // as in [userpilot.Property]
	Superseded bool
}

// supersededAtOnce bounds the users per request: the server accepts 1,024.
const supersededAtOnce = 500

// Supersessions compares each letter with its user's version record. It blocks for one round trip
// per few hundred letters, and needs permission to publish to $JS.API.DIRECT.GET.KV_<bucket>_versions.
// In a cluster its answer can lag a little; a replay is exact.
func (i *Inspector) Supersessions(ctx context.Context, letters []*DeadLetter) ([]Supersession, error) {
	found := make([]Supersession, len(letters))
	for at := 0; at < len(letters); at += supersededAtOnce {
		some := letters[at:min(len(letters), at+supersededAtOnce)]
		records, err := i.versionRecordsOf(ctx, some)
		if err != nil {
			return nil, fmt.Errorf("read version records: %w", err)
		}
		for j, l := range some {
			if n := records[versionSubject(i.topology, l.user())]; l.user() != "" && n != nil {
				found[at+j] = n.supersession(l)
			}
		}
	}
	return found, nil
}

// versionRecordsOf reads the version records of the letters' users, by subject. It omits damaged ones.
func (i *Inspector) versionRecordsOf(ctx context.Context, letters []*DeadLetter) (map[string]*VersionRecord, error) {
	records := map[string]*VersionRecord{}
	var r jsapi.DirectRequest
	for _, l := range letters {
		if user := l.user(); user != "" {
			subject := versionSubject(i.topology, user)
			if _, asked := records[subject]; !asked {
				records[subject] = nil
				r.Last = append(r.Last, subject)
			}
		}
	}
	if len(r.Last) == 0 {
		return records, nil
	}
	stream := versionsStreamName(i.topology)
	err := jsapi.Retry(ctx, jsapi.FirstTimeout, func(ctx context.Context) error {
		_, err := i.api.Direct(ctx, stream, r, func(m *nats.Msg) bool {
			var n VersionRecord
			if len(m.Data) > 0 && json.Unmarshal(m.Data, &n.record) == nil {
				records[m.Header.Get(jetstream.SubjectHeader)] = &n
			}
			return true
		})
		return err
	})
	return records, err
}

func (n *VersionRecord) supersession(l *DeadLetter) (s Supersession) {
	event, err := userpilot.Parse(l.Body)
	if err != nil || !n.Known() {
		return s
	}
	some := false
	for p := range event.Properties() {
		standing, _ := n.judge(p, l.Origin)
		gone := standing == userpilot.Superseded
		s.Properties = append(s.Properties, PropertyStanding{Path: p.Path, Superseded: gone})
		some = some || gone
	}
	_, left, known := n.Reduce(event, l.Origin)
	s.Known, s.Wholly, s.Partly = known, known && !left, known && left && some
	return s
}
