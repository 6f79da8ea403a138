//go:build !noembed

package queue

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func TestTopologyValidate(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		topology Topology
		want     string // of the error; empty for none
	}{
		"defaults":            {Topology{}, ""},
		"all named":           {Topology{Name: "a-b_9", Partitions: 256, Replicas: 5}, ""},
		"sixty-four":          {Topology{Name: strings.Repeat("a", 64)}, ""},
		"too long":            {Topology{Name: strings.Repeat("a", 65)}, "name:"},
		"capitals":            {Topology{Name: "A"}, "name:"},
		"a dot":               {Topology{Name: "a.b"}, "name:"},
		"a wildcard":          {Topology{Name: "a*"}, "name:"},
		"a space":             {Topology{Name: "a b"}, "name:"},
		"a line break":        {Topology{Name: "a\n"}, "name:"},
		"a hyphen first":      {Topology{Name: "-a"}, "name:"},
		"like dead letters":   {Topology{Name: "a-dlq"}, "name:"},
		"like their stream":   {Topology{Name: "a_dlq"}, "name:"},
		"like the records":    {Topology{Name: "a_versions"}, "name:"},
		"no partitions":       {Topology{Partitions: -1}, "partitions:"},
		"too many partitions": {Topology{Partitions: 257}, "partitions:"},
		"two copies":          {Topology{Replicas: 2}, "replicas:"},
		"negative copies":     {Topology{Replicas: -1}, "replicas:"},
	} {
		err := test.topology.Validate()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestTopologyNames(t *testing.T) {
	t.Parallel()
	for _, topology := range []Topology{{}, {Name: "identify"}} {
		got := []string{topology.StreamName(), topology.DeadStreamName(), topology.Bucket(), topology.PlainSubject(), topology.Subject("a.b>*")}
		want := []string{"USERPILOT_IDENTIFY", "USERPILOT_IDENTIFY_DLQ", "userpilot_identify", "userpilot.identify", "userpilot.identify.YS5iPio"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// streams are the configurations of the three streams, as JetStream has them.
func (s *sim) streams(q *Queue) map[string]string {
	s.T.Helper()
	configs := map[string]string{}
	for _, name := range []string{q.topology.StreamName(), q.topology.DeadStreamName(), "KV_" + q.topology.Bucket(), "KV_" + q.topology.VersionsBucket(), q.topology.AuditStreamName()} {
		config := s.info(q, name).Config
		transform := config.SubjectTransform
		config.SubjectTransform = nil
		configs[name] = fmt.Sprintf("%+v %+v", config, transform)
	}
	return configs
}

func TestSetupIsIdempotent(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(nil, Topology{Name: "new", Partitions: 4})
		changes, err := q.Setup(t.Context(), false)
		s.Must(err)
		want := []string{"stream USERPILOT_NEW: created", "stream USERPILOT_NEW_DLQ: created", "stream KV_userpilot_new: created",
			"stream KV_userpilot_new_versions: created", "stream USERPILOT_NEW_AUDIT: created"}
		var got []string
		for _, c := range changes {
			got = append(got, c.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("the changes are %q", got)
		}
		before := s.streams(q)
		for _, update := range []bool{false, true} {
			if changes, err := q.Setup(t.Context(), update); err != nil || len(changes) != 0 {
				t.Errorf("update %v: %v, %v", update, changes, err)
			}
		}
		if !maps.Equal(before, s.streams(q)) {
			t.Error("the streams have changed")
		}
	})
}

// Limits of bytes are set, changed by an update, and kept by a set-up that says nothing of them.
func TestSetupLimits(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(nil, Topology{Name: "new", Limits: Limits{Work: 1 << 20, Dead: 2 << 20, Records: 3 << 20}})
		_, err := q.Setup(t.Context(), false)
		s.Must(err)
		limits := func() (all []int64) {
			for _, c := range q.topology.StreamConfigs(q.api.NATS.MaxPayload()) {
				all = append(all, s.Info(q.api.JetStream, c.Name).Config.MaxBytes)
			}
			return all
		}
		if got := limits(); !slices.Equal(got, []int64{1 << 20, 2 << 20, 3 << 20, 3 << 20, 3 << 20}) {
			t.Errorf("created with %v", got)
		}
		more := s.queueOf(nil, Topology{Name: "new", Limits: Limits{Work: 4 << 20}})
		if changes, err := more.Setup(t.Context(), true); err != nil || len(changes) != 1 || changes[0].Field != "max_bytes" {
			t.Errorf("an update: %v, %v", changes, err)
		}
		if changes, err := s.queueOf(nil, Topology{Name: "new"}).Setup(t.Context(), true); err != nil || len(changes) != 0 {
			t.Errorf("an update without limits: %v, %v", changes, err)
		}
		if got := limits(); got[0] != 4<<20 || got[1] != 2<<20 {
			t.Errorf("now they are %v", got)
		}
	})
}

// A stream that is missing is not made in the likeness of a topology from which the others differ.
func TestSetupCreatesNothingBesideDifferences(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.Must(q.api.JetStream.DeleteStream(t.Context(), deadName))
		other := s.queueOf(nil, Topology{Partitions: 8})
		changes, err := other.Setup(t.Context(), false)
		if mismatch, ok := errors.AsType[*MismatchError](err); !ok || len(mismatch.Differences) != 1 || len(changes) != 0 {
			t.Errorf("got %v, %v", changes, err)
		}
		if _, err := q.api.JetStream.Stream(t.Context(), deadName); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("the missing stream: %v", err)
		}
		if changes, err := q.Setup(t.Context(), false); err != nil || len(changes) != 1 || changes[0].Stream != deadName {
			t.Errorf("without a difference: %v, %v", changes, err)
		}
	})
}

func TestSetupAtTheSameTime(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		var wg sync.WaitGroup
		ctx := s.Soon(time.Minute)
		for range 8 {
			q := s.queueOf(nil, Topology{Name: "new"})
			wg.Go(func() {
				if _, err := q.Setup(ctx, false); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// alteration is a manual change of a stream, and the expected report.
type alteration struct {
	stream string
	alter  func(*jetstream.StreamConfig)
	fields []string // that Setup names; empty means "left alone"
}

const (
	workName = "USERPILOT_IDENTIFY"
	deadName = "USERPILOT_IDENTIFY_DLQ"
	kvName   = "KV_userpilot_identify"
)

var alterations = map[string]alteration{
	"old events dropped": {workName, func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }, []string{"discard"}},
	"events age":         {workName, func(c *jetstream.StreamConfig) { c.MaxAge = 1e12 }, []string{"max_age"}},
	"one each user":      {workName, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }, []string{"max_msgs_per_subject"}},
	"other partitions": {workName, func(c *jetstream.StreamConfig) {
		c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "userpilot.identify.*", Destination: "userpilot.identify.{{partition(8,1)}}"}
	}, []string{"partitions"}},
	"no partitions":     {workName, func(c *jetstream.StreamConfig) { c.SubjectTransform = nil }, []string{"subject_transform"}},
	"ids forgotten":     {workName, func(c *jetstream.StreamConfig) { c.Duplicates = time.Second }, []string{"duplicate_window"}},
	"ids kept":          {workName, func(c *jetstream.StreamConfig) { c.Duplicates = time.Hour }, nil},
	"no answers":        {workName, func(c *jetstream.StreamConfig) { c.NoAck = true }, []string{"no_ack"}},
	"roll-ups":          {workName, func(c *jetstream.StreamConfig) { c.AllowRollup = true }, []string{"allow_rollup_hdrs"}},
	"more subjects":     {workName, func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "more") }, []string{"subjects"}},
	"too large events":  {workName, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1 << 20 }, []string{"max_msg_size"}},
	"small events":      {workName, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1 << 10 }, nil},
	"two at once":       {workName, func(c *jetstream.StreamConfig) { c.Discard, c.MaxAge = jetstream.DiscardOld, 1e12 }, []string{"discard", "max_age"}},
	"a byte limit":      {workName, func(c *jetstream.StreamConfig) { c.MaxBytes = 1 << 30 }, nil},
	"a description":     {workName, func(c *jetstream.StreamConfig) { c.Description = "ours" }, nil},
	"letters dropped":   {deadName, func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }, []string{"discard"}},
	"letters live long": {deadName, func(c *jetstream.StreamConfig) { c.MaxAge *= 2 }, nil},
	"few letters":       {deadName, func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }, nil},
	"keys age":          {kvName, func(c *jetstream.StreamConfig) { c.MaxAge = 1e12 }, []string{"max_age"}},
	"no direct gets":    {kvName, func(c *jetstream.StreamConfig) { c.AllowDirect = false }, []string{"allow_direct"}},
	"markers":           {kvName, func(c *jetstream.StreamConfig) { c.SubjectDeleteMarkerTTL = time.Minute }, []string{"subject_delete_marker_ttl"}},
	"a history":         {kvName, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 }, []string{"max_msgs_per_subject"}},
}

// Setup names each difference and changes nothing unless update is set.
func TestSetupDifferences(t *testing.T) {
	for name, test := range alterations {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				right := s.streams(q)
				config := s.info(q, test.stream).Config
				test.alter(&config)
				_, err := q.api.JetStream.UpdateStream(t.Context(), config)
				s.Must(err)
				altered := s.streams(q)

				changes, err := q.Setup(t.Context(), false)
				var fields []string
				if mismatch, ok := errors.AsType[*MismatchError](err); ok {
					for _, d := range mismatch.Differences {
						fields = append(fields, d.Field)
						if d.Stream != test.stream || !strings.Contains(err.Error(), d.String()) {
							t.Errorf("the error is %v", err)
						}
					}
				} else {
					s.Must(err)
				}
				if len(changes) != 0 || !slices.Equal(fields, test.fields) || !maps.Equal(altered, s.streams(q)) {
					t.Errorf("changed %v, named %v, want %v", changes, fields, test.fields)
				}

				changes, err = q.Setup(t.Context(), true)
				s.Must(err)
				if len(changes) != len(test.fields) {
					t.Errorf("an update changed %v", changes)
				}
				if test.fields != nil && !maps.Equal(right, s.streams(q)) {
					t.Errorf("after the update\n%v\nwant\n%v", s.streams(q), right)
				}
				if test.fields == nil && !maps.Equal(altered, s.streams(q)) {
					t.Error("the update changed the platform team's settings")
				}
			})
		})
	}
}

// An update for one reason leaves the limits of the platform team alone.
func TestSetupKeepsSmallEvents(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		for _, stream := range []string{workName, deadName} {
			s.Change(q.api.JetStream, stream, func(c *jetstream.StreamConfig) { c.Discard, c.MaxMsgSize = jetstream.DiscardOld, 64<<10 })
		}
		changes, err := q.Setup(t.Context(), true)
		s.Must(err)
		if len(changes) != 2 || changes[0].Field != "discard" || changes[1].Field != "discard" {
			t.Errorf("it changed %v", changes)
		}
		for _, stream := range []string{workName, deadName} {
			if size := s.info(q, stream).Config.MaxMsgSize; size != 64<<10 {
				t.Errorf("%s: messages may have %d bytes", stream, size)
			}
		}
	})
}

// What a stream must have been created without is named too. The server tells why an update does not
// help.
func TestSetupCannotUpdate(t *testing.T) {
	for field, alter := range map[string]func(*jetstream.StreamConfig){
		"deny_delete":  func(c *jetstream.StreamConfig) { c.DenyDelete = true },
		"persist_mode": func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"sealed":       func(c *jetstream.StreamConfig) { c.Sealed = true },
	} {
		t.Run(field, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queueOf(nil, Topology{Name: "new"})
				config := q.topology.WorkStream(q.api.NATS.MaxPayload())
				alter(&config)
				open := config
				open.Sealed = false // no stream begins sealed
				_, err := q.api.JetStream.CreateStream(t.Context(), open)
				s.Must(err)
				s.Must(q.update(t.Context(), config))
				if _, err := q.Setup(t.Context(), false); err == nil || !strings.Contains(err.Error(), field+" is ") {
					t.Errorf("got %v", err)
				}
				if _, err := q.Setup(t.Context(), true); err == nil || !strings.Contains(err.Error(), "can not") {
					t.Errorf("an update: %v", err)
				}
			})
		})
	}
}

// Waiting events are never hashed again.
func TestSetupRefusesToRehash(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.publish(q, "ann", "bob")
		other := s.queueOf(nil, Topology{Partitions: 8})
		before := s.streams(q)
		if _, err := other.Setup(t.Context(), true); err == nil || !strings.Contains(err.Error(), "2 events wait") {
			t.Errorf("got %v", err)
		}
		if !maps.Equal(before, s.streams(q)) {
			t.Error("the streams have changed")
		}
		stream, err := q.api.JetStream.Stream(t.Context(), workName)
		s.Must(err)
		s.Must(stream.Purge(t.Context()))
		if _, err := other.Setup(t.Context(), true); err != nil {
			t.Error(err)
		}
	})
}

// A different stream with the same name is never touched.
func TestSetupMeetsAStranger(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(nil, Topology{Name: "new"})
		_, err := q.api.JetStream.CreateStream(t.Context(), jetstream.StreamConfig{Name: "USERPILOT_NEW", Subjects: []string{"orders"}, Storage: jetstream.MemoryStorage})
		s.Must(err)
		_, err = q.Setup(t.Context(), false)
		mismatch, ok := errors.AsType[*MismatchError](err)
		if !ok || len(mismatch.Differences) < 4 {
			t.Errorf("got %v", err)
		}
		if _, err := q.Setup(t.Context(), true); err == nil {
			t.Error("a stream in memory was made the work stream")
		}
	})
}

// The server hashes any key that a client publishes under, and keeps a user in one partition.
func TestTransform(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		const users = 400
		for range 2 {
			for i := range users {
				s.publish(q, fmt.Sprintf("user%d@example.com", i))
			}
		}
		_, err := q.api.JetStream.Publish(t.Context(), q.topology.PlainSubject(), []byte("{}"))
		s.Must(err)
		stream, err := q.api.JetStream.Stream(t.Context(), workName)
		s.Must(err)
		info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
		s.Must(err)
		var want []string
		for _, p := range q.topology.PartitionNames() {
			want = append(want, q.topology.LiveSubject(p))
		}
		if got := slices.Sorted(maps.Keys(info.State.Subjects)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("the subjects are %v", got)
		}
		for i := range uint64(users) {
			first, err := stream.GetMsg(t.Context(), i+1)
			s.Must(err)
			second, err := stream.GetMsg(t.Context(), i+1+users)
			s.Must(err)
			if first.Subject != second.Subject {
				t.Errorf("%s is on %s and %s", first.Data, first.Subject, second.Subject)
			}
		}
	})
}
