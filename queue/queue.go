package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/asynclog"
)

// callTimeout bounds one request to the server. Creating a consumer in a cluster usually takes 80
// ms, but occasionally more than 2 s after a node has died.
const callTimeout = 4 * time.Second

// Queue is one pipeline on one NATS connection. It is safe for concurrent use.
type Queue struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	topology Topology
	log      *slog.Logger
	clock    clock
	cooldown cooldown
	held     atomic.Int32 // partitions claimed now
	replicas atomic.Pointer[[]Replica]
	setbacks setbacks
	tracked  *trackedUsers
	groups   groups
	sealed   atomic.Pointer[seal] // see readSeal
	deadAge  atomic.Pointer[deadAge]
	others   atomic.Pointer[schedule]        // the limits that the other replicas set for the ledger
	lacks    atomic.Pointer[PermissionError] // why Work cannot work; nil if it can
	newAcks  atomic.Bool                     // an event has been seen that toNewAcks settles
}

// New returns the pipeline with this topology. It sends nothing: call [Queue.Setup] to create
// missing streams. The caller still owns the connection and closes it. A nil logger discards;
// otherwise a separate goroutine calls the logger's handler, which may block.
func New(nc *nats.Conn, t Topology, log *slog.Logger) (*Queue, error) {
	t, err := t.withDefaults()
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(callTimeout))
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	q := &Queue{nc: nc, js: js, topology: t, log: asynclog.Wrap(log), cooldown: cooldown{woken: make(chan struct{})}}
	q.clock.q, q.tracked = q, newTrackedUsers(q)
	return q, nil
}

// Topology returns the names and sizes, with defaults filled in.
func (q *Queue) Topology() Topology { return q.topology }

// Connected reports whether the connection to NATS is up.
func (q *Queue) Connected() bool { return q.nc.IsConnected() }

// Held is the number of partitions that [Queue.Work] holds now.
func (q *Queue) Held() int { return int(q.held.Load()) }

// othersPace is the limit that the other replicas set for this one.
func (q *Queue) othersPace() schedule {
	if p := q.others.Load(); p != nil {
		return *p
	}
	return schedule{}
}

// signal wakes the receiver of ch. ch buffers one signal; more would add nothing.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Counts describes the contents of the streams.
type Counts struct {
	Backlog     uint64    // events not yet settled
	Oldest      time.Time // when the oldest of them was stored; zero without a backlog
	DeadLetters uint64
	OldestDead  time.Time // when the oldest dead letter was stored; zero if there is none
}

// Counts reads the numbers from the server. It blocks for two round trips.
func (q *Queue) Counts(ctx context.Context) (Counts, error) {
	work, err := q.stream(ctx, q.topology.StreamName())
	if err != nil {
		return Counts{}, fmt.Errorf("read the work stream's state: %w", err)
	}
	dead, err := q.stream(ctx, q.topology.DeadStreamName())
	if err != nil {
		return Counts{}, fmt.Errorf("read the dead-letter stream's state: %w", err)
	}
	return newCounts(work.CachedInfo(), dead.CachedInfo()), nil
}

// compareAndSet writes a key if it has the given revision; 0 means that the key does not exist or
// was deleted.
func compareAndSet(ctx context.Context, kv jetstream.KeyValue, key string, value []byte, revision uint64) (uint64, error) {
	if revision == 0 {
		return kv.Create(ctx, key, value)
	}
	return kv.Update(ctx, key, value, revision)
}

// isWrongRevision reports whether a compare-and-set found another revision. A cluster uses a
// different error code for that.
func isWrongRevision(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// storedMessage is the leader's answer to STREAM.MSG.GET.
type storedMessage struct {
	Sequence uint64    `json:"seq"`
	Subject  string    `json:"subject"`
	Header   []byte    `json:"hdrs"`
	Data     []byte    `json:"data"`
	Time     time.Time `json:"time"`
}

// isMarker reports whether the message says that a key was deleted or has expired.
func (m *storedMessage) isMarker() bool {
	return bytes.Contains(m.Header, []byte("KV-Operation:")) || bytes.Contains(m.Header, []byte(jetstream.MarkerReasonHeader+":"))
}

// readLeader reads one stored message from the stream's leader. A direct get could be answered by a
// follower that lags.
func (q *Queue) readLeader(ctx context.Context, stream string, request any) (*storedMessage, error) {
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *storedMessage      `json:"message"`
	}
	if err := q.request(ctx, "$JS.API.STREAM.MSG.GET."+stream, request, &answer); err != nil {
		return nil, err
	}
	if answer.Error != nil {
		return nil, answer.Error
	}
	if answer.Message == nil {
		return nil, errors.New("the server's answer holds no message")
	}
	return answer.Message, nil
}

// request sends one request to JetStream's API and decodes the answer.
func (q *Queue) request(ctx context.Context, subject string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	data, err := q.ask(ctx, subject, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, answer)
}

// ask sends one request to JetStream's API.
func (q *Queue) ask(ctx context.Context, subject string, body []byte) (answer []byte, err error) {
	brief, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = q.withPermissionCheck(brief, func(ctx context.Context) error {
		msg, err := q.nc.RequestWithContext(ctx, subject, body)
		if err == nil {
			answer = msg.Data
		}
		return err
	}, to(subject))
	if brief.Err() != nil && ctx.Err() == nil && err != nil {
		return nil, noReply(subject)
	}
	return answer, err
}

// whileConnected cancels ctx when the connection breaks. Requests in flight will then get no
// answer, and their callers would block until the timeout, long after the reconnect.
func (q *Queue) whileConnected(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	broken := q.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	go func() {
		defer q.nc.RemoveStatusListener(broken)
		select {
		case <-broken:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// nextBySubject requests the first message at or after a sequence whose subject matches.
type nextBySubject struct {
	Sequence uint64 `json:"seq"`
	Subject  string `json:"next_by_subj"`
}

type bySequence struct {
	Sequence uint64 `json:"seq"`
}

type lastBySubject struct {
	Subject string `json:"last_by_subj"`
}
