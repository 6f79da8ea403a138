package worker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

// slowReader is a worker that takes long to read one event.
type slowReader struct {
	*Worker
	slow    uint64 // its sequence
	reading chan struct{}
	read    chan struct{}
}

// Deliver implements fleet.Handler.
func (r slowReader) Deliver(c *fleet.Claim, d fleet.Delivery) {
	if d.Sequence == r.slow {
		close(r.reading)
		<-r.read
	}
	r.Worker.Deliver(c, d)
}

// Promise 2 across a takeover: the new owner resends a merged call of the previous owner whole. While
// it still reads the last event, an event of another partition must not unblock the user.
func TestReachIsInItsLane(t *testing.T) {
	withPipeline(t, func(t *testing.T, q *queue.Queue, nc *nats.Conn) {
		victim, others := usersApart(t, q, nc)
		for range 2 {
			tell(t, q, nc, victim)
		}
		last := tell(t, q, nc, victim)
		leaveMerged(t, q, nc, victim, last)
		w, err := New(Config{Queue: q, Client: caller{}})
		if err != nil {
			t.Fatal(err)
		}
		h := slowReader{w, last, make(chan struct{}), make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- fleet.New(q).Work(ctx, fleet.MemberConfig{}, h) }()
		<-h.reading
		for _, user := range others {
			tell(t, q, nc, user)
		}
		time.Sleep(time.Second)
		if n := callable(w, victim); n != 0 {
			t.Errorf("the user may be called for with %d events of 3", n)
		}
		close(h.read)
		time.Sleep(time.Second)
		if n := callable(w, victim); n != 3 {
			t.Errorf("the user may be called for with %d events of 3", n)
		}
		cancel()
		<-done
	})
}

// callable returns how many of a user's events may be sent now.
func callable(w *Worker, user string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.partitions {
		if l := p.lanes[user]; l != nil && l.state == ready {
			return l.take(true)
		}
	}
	return 0
}

// tell publishes an event and returns its sequence.
func tell(t *testing.T, q *queue.Queue, nc *nats.Conn, user string) uint64 {
	t.Helper()
	return publish(t, nc, q.Topology().Subject(user), fmt.Appendf(nil, `{"user_id":%q}`, user))
}

func publish(t *testing.T, nc *nats.Conn, subject string, body []byte) uint64 {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ack, err := js.Publish(t.Context(), subject, body)
	if err != nil {
		t.Fatal(err)
	}
	return ack.Sequence
}

func workStream(t *testing.T, q *queue.Queue, nc *nats.Conn) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), q.Topology().StreamName())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// partitionOf returns the partition to which the server maps a user.
func partitionOf(t *testing.T, q *queue.Queue, nc *nats.Conn, user string) string {
	t.Helper()
	stream := workStream(t, q, nc)
	seq := tell(t, q, nc, user)
	m, err := stream.GetMsg(t.Context(), seq)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), seq); err != nil {
		t.Fatal(err)
	}
	return path.Ext(m.Subject)[1:]
}

// usersApart returns a user of partition 0 and many users of others: this replica does not own all of
// these partitions.
func usersApart(t *testing.T, q *queue.Queue, nc *nats.Conn) (first string, others []string) {
	t.Helper()
	for i := 0; first == "" || len(others) < 40; i++ {
		user := fmt.Sprint("u", i)
		if partitionOf(t, q, nc, user) == "0" {
			first = user
		} else {
			others = append(others, user)
		}
	}
	return first, others
}

// leaveMerged leaves the state of an owner of partition 0 that died during a merged call. Another
// member is alive, so each partition has its own consumer.
func leaveMerged(t *testing.T, q *queue.Queue, nc *nats.Conn, user string, last uint64) {
	t.Helper()
	stream := workStream(t, q, nc)
	sum := sha256.Sum256([]byte(user))
	record, err := json.Marshal(map[string]any{
		"stream": stream.CachedInfo().Created,
		"open":   map[string]uint64{base64.RawURLEncoding.EncodeToString(sum[:12]): last},
	})
	if err != nil {
		t.Fatal(err)
	}
	bucket := "$KV." + q.Topology().Bucket()
	publish(t, nc, bucket+".merge.0", record)
	publish(t, nc, bucket+".member.zzzzzzzzzzzzzzzzzzzzzz", []byte(`{"ttl":600000000000}`))
}
