package jsapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// lastNumber parses the last of a header's values.
func lastNumber(h nats.Header, name string) (n uint64, ok bool) {
	values := h[name]
	if len(values) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(values[len(values)-1], 10, 64)
	return n, err == nil
}

// Require returns a [*PermissionError] if a permission is missing. It blocks for a round trip or
// two.
func (c *Conn) Require(ctx context.Context, r Permission) error {
	may, err := c.IsPermitted(ctx, r)
	if err == nil && !may {
		return c.in(r).Denied()
	}
	return err
}

// MarkerTTL is how long the marker of a deleted key is kept.
const MarkerTTL = time.Minute

// Marker returns a delete marker that lives as long as others may need to see it. The marker of
// kv.Delete would stay indefinitely.
func Marker(subject string, ttl time.Duration) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Header.Set("KV-Operation", "PURGE") // when a DEL expires, the server writes a marker of its own
	m.Header.Set(jetstream.MsgTTLHeader, ttl.String())
	return m
}

// Stream looks up a stream, with its current state. It returns [jetstream.ErrStreamNotFound] if
// there is none.
func (c *Conn) Stream(ctx context.Context, name string) (s jetstream.Stream, err error) {
	err = c.WithPermissionCheck(ctx, func(ctx context.Context) error {
		s, err = c.JetStream.Stream(ctx, name)
		return err
	}, ToRequest("STREAM.INFO."+name))
	return s, err
}

// Store publishes a message and blocks until the stream has stored it. to is the permission that it
// needs. If another stream took the message, the error is a [*ForeignStreamError]. Store does not
// retry: without an answer, the message may have been stored.
func (c *Conn) Store(ctx context.Context, stream string, to Permission, m *nats.Msg, options ...jetstream.PublishOpt) (ack *jetstream.PubAck, err error) {
	to.Probe = m.Subject
	sent := *m
	sent.Subject = c.Subject(m.Subject)
	err = c.WithPermissionCheck(ctx, func(ctx context.Context) error {
		ack, err = c.JetStream.PublishMsg(ctx, &sent, options...)
		return err
	}, to)
	if err != nil {
		return nil, err
	}
	if err := c.CheckSource(stream, ack.Stream, ack.Domain); err != nil {
		return nil, err
	}
	return ack, nil
}

// StoreKey is [Conn.Store] for a key of the fleet's bucket.
func (c *Conn) StoreKey(ctx context.Context, to Permission, m *nats.Msg, options ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	return c.Store(ctx, c.BucketStream(), to, m, options...)
}

// ConsumerNames lists the names of a stream's consumers.
func (c *Conn) ConsumerNames(ctx context.Context, stream jetstream.Stream) (names []string, err error) {
	to := ToRequest("CONSUMER.NAMES." + stream.CachedInfo().Config.Name)
	err = c.WithPermissionCheck(ctx, func(ctx context.Context) error {
		names = nil
		list := stream.ConsumerNames(ctx)
		for name := range list.Name() {
			names = append(names, name)
		}
		return list.Err()
	}, to)
	if err != nil {
		return nil, fmt.Errorf("list the consumers: %w", AsNoReply(ctx, to.Subject, err))
	}
	return names, nil
}

// Conn makes the requests of one pipeline to JetStream. It is safe for concurrent use.
type Conn struct {
	NATS      *nats.Conn
	JetStream jetstream.JetStream // without permission checks: see WithPermissionCheck
	bucket    string              // the name of the key-value bucket that the fleet shares
	domain    string              // of the streams; empty is the connected server's
	Clock     Clock               // the time of the server that leads the bucket
}

// New returns a Conn for the pipeline whose replicas share a bucket, in a JetStream domain; empty
// is that of the connected server. It sends nothing.
func New(nc *nats.Conn, bucket, domain string) (*Conn, error) {
	open := jetstream.New
	if domain != "" {
		open = func(nc *nats.Conn, options ...jetstream.JetStreamOpt) (jetstream.JetStream, error) {
			return jetstream.NewWithDomain(nc, domain, options...)
		}
	}
	js, err := open(nc, jetstream.WithDefaultTimeout(CallTimeout))
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	c := &Conn{NATS: nc, JetStream: js, bucket: bucket, domain: domain}
	c.Clock.conn = c
	return c, nil
}

// CallTimeout bounds one request to the server. Creating a consumer in a cluster usually takes 80
// ms, but occasionally more than 2 s after a node has died.
const CallTimeout = 4 * time.Second

// StoredMessage is a message of a stream, as its leader returns it.
type StoredMessage struct {
	Sequence uint64    `json:"seq"`
	Subject  string    `json:"subject"` // in the stream
	Header   []byte    `json:"hdrs"`    // encoded; anyone may have written it
	Data     []byte    `json:"data"`
	Time     time.Time `json:"time"` // when the stream stored it
}

// IsMarker reports whether the message says that a key was deleted or has expired.
func (m *StoredMessage) IsMarker() bool {
	return bytes.Contains(m.Header, []byte("KV-Operation:")) || bytes.Contains(m.Header, []byte(jetstream.MarkerReasonHeader+":"))
}

// ReadSequence reads a stored message from the stream's leader, or returns
// [jetstream.ErrMsgNotFound]. A direct get could be answered by a follower that lags.
func (c *Conn) ReadSequence(ctx context.Context, stream string, sequence uint64) (*StoredMessage, error) {
	return c.readLeader(ctx, stream, map[string]any{"seq": sequence})
}

// ReadNext reads the first message at or after a sequence whose subject matches, from the stream's
// leader, or returns [jetstream.ErrMsgNotFound].
func (c *Conn) ReadNext(ctx context.Context, stream string, sequence uint64, subject string) (*StoredMessage, error) {
	return c.readLeader(ctx, stream, map[string]any{"seq": sequence, "next_by_subj": subject})
}

// ReadFirst reads the first message at or after a sequence that one of the subjects matches, from the
// stream's leader. It blocks for a round trip for each.
func (c *Conn) ReadFirst(ctx context.Context, stream string, sequence uint64, subjects ...string) (first *StoredMessage, err error) {
	for _, subject := range subjects {
		m, err := c.ReadNext(ctx, stream, sequence, subject)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
		case err != nil:
			return nil, err
		case first == nil || m.Sequence < first.Sequence:
			first = m
		}
	}
	if first == nil {
		return nil, jetstream.ErrMsgNotFound
	}
	return first, nil
}

// ReadLast reads the last message whose subject matches, from the stream's leader, or returns
// [jetstream.ErrMsgNotFound].
func (c *Conn) ReadLast(ctx context.Context, stream, subject string) (*StoredMessage, error) {
	return c.readLeader(ctx, stream, map[string]any{"last_by_subj": subject})
}

// readLeader returns [jetstream.ErrMsgNotFound] if there is no such message.
func (c *Conn) readLeader(ctx context.Context, stream string, request any) (*StoredMessage, error) {
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *StoredMessage      `json:"message"`
	}
	if err := c.Request(ctx, "$JS.API.STREAM.MSG.GET."+stream, request, &answer); err != nil {
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

// Request sends one request to JetStream's API and decodes the answer. It blocks for [CallTimeout]
// at most. An error of the API is part of the answer.
func (c *Conn) Request(ctx context.Context, subject string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	data, err := c.ask(ctx, subject, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, answer)
}

// ask sends one request to JetStream's API.
func (c *Conn) ask(ctx context.Context, subject string, body []byte) (answer []byte, err error) {
	subject = c.Subject(subject)
	brief, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	err = c.WithPermissionCheck(brief, func(ctx context.Context) error {
		msg, err := c.NATS.RequestWithContext(ctx, subject, body)
		if err == nil {
			answer = msg.Data
		}
		return err
	}, ToPublish(subject))
	if brief.Err() != nil && ctx.Err() == nil && err != nil {
		return nil, c.noReply(subject)
	}
	return answer, err
}

// WhileConnected cancels ctx when the connection breaks. Requests in flight will then get no
// answer, and their callers would block until the timeout, long after the reconnect.
func (c *Conn) WhileConnected(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	broken := c.NATS.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	go func() {
		defer c.NATS.RemoveStatusListener(broken)
		select {
		case <-broken:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// SequenceOf is the sequence of a message from a direct get; 0 if it has none.
func SequenceOf(m *nats.Msg) uint64 {
	n, _ := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	return n
}

// StreamInfo reads a stream's state, with the server's time of the answer, and its subjects that
// match a filter; an empty filter matches none.
func (c *Conn) StreamInfo(ctx context.Context, stream, subjects string) (*jetstream.StreamInfo, error) {
	var answer struct {
		Error *jetstream.APIError `json:"error"`
		jetstream.StreamInfo
	}
	request := map[string]string{}
	if subjects != "" {
		request["subjects_filter"] = subjects
	}
	err := c.Request(ctx, "$JS.API.STREAM.INFO."+stream, request, &answer)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%s: %w (%w)", stream, ErrNoStream, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of stream %s: %w", stream, err)
	}
	return &answer.StreamInfo, nil
}

// bucketStream is the name of the stream behind a key-value bucket.
func bucketStream(bucket string) string { return "KV_" + bucket }

// BucketName is the name of the fleet's bucket.
func (c *Conn) BucketName() string { return c.bucket }

// BucketStream is the name of the stream behind the fleet's bucket.
func (c *Conn) BucketStream() string { return bucketStream(c.bucket) }

// keySubject is the subject of a key's values.
func keySubject(bucket, key string) string { return "$KV." + bucket + "." + key }

// KeySubject is the subject of the values of a key of the fleet's bucket.
func (c *Conn) KeySubject(key string) string { return keySubject(c.bucket, key) }

// ToWriteKey is the permission to write a key of a bucket.
func ToWriteKey(bucket, key string) Permission {
	return Permission{Subject: keySubject(bucket, ">"), Probe: keySubject(bucket, key)}
}

// ToWriteKey is the permission to write a key of the fleet's bucket.
func (c *Conn) ToWriteKey(key string) Permission { return ToWriteKey(c.bucket, key) }

// ReadKey reads the newest value of a key of the fleet's bucket from its leader, by its subject. A
// deleted key has an empty value. Without a value it returns [jetstream.ErrMsgNotFound].
func (c *Conn) ReadKey(ctx context.Context, subject string) (*StoredMessage, error) {
	m, err := c.ReadLast(ctx, c.BucketStream(), subject)
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("read the bucket %s: %w", c.bucket, err)
	}
	return m, err
}

// keysAtOnce is the number of keys read per request. The server answers at most 1,024.
const keysAtOnce = 500

// ReadKeys reads the newest values of keys, by their subjects. A deleted key has an empty value. In
// a cluster, a lagging replica of the bucket may answer.
func (c *Conn) ReadKeys(ctx context.Context, subjects []string) (map[string]*StoredMessage, error) {
	found := map[string]*StoredMessage{}
	for some := range slices.Chunk(subjects, keysAtOnce) {
		_, err := c.Direct(ctx, c.BucketStream(), DirectRequest{Last: some}, func(m *nats.Msg) bool {
			sequence, _ := lastNumber(m.Header, jetstream.SequenceHeader)
			at, _ := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
			found[m.Header.Get(jetstream.SubjectHeader)] = &StoredMessage{Sequence: sequence, Data: m.Data, Time: at}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// Signal wakes the receiver of ch. ch buffers one signal; more would add nothing.
func Signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// AccountTier reads the usage and the limits of the account, for streams with so many replicas. It
// blocks for a round trip or two.
func (c *Conn) AccountTier(ctx context.Context, replicas int) (tier jetstream.Tier, err error) {
	err = c.WithPermissionCheck(ctx, func(ctx context.Context) error {
		info, err := c.JetStream.AccountInfo(ctx)
		if err != nil {
			return err
		}
		tier = info.Tier
		if of, ok := info.Tiers[fmt.Sprintf("R%d", replicas)]; ok {
			tier = of
		}
		return nil
	}, ToRequest("INFO"))
	return tier, err
}
