package jsapi

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// Prefetch is the number of events that a consumer sends ahead: enough for the time until the
	// server serves the next request.
	Prefetch = 2000
	// prefetchBytes exceeds queue.MaxMessageBytes: a pull that could not hold the next event would
	// never end.
	prefetchBytes = 1 << 20
	// PullExpiry is how long the server serves one request.
	PullExpiry = 30 * time.Second
	// PullHeartbeat is how often the server shows that it still serves a request.
	PullHeartbeat = 5 * time.Second
)

// pullRoom is the room for messages other than events: the ends of pulls, and the heartbeats that
// arrive while a handler blocks. Heartbeats stop when the pull ends.
const pullRoom = 100

// Pull requests a consumer's events before they are handled. Only one goroutine may use it.
//
// jetstream's Consume is no substitute. It can miss that the next request is due and stall until a
// heartbeat is overdue. It also mistakes an event without a body whose publisher set the header
// "Status: 409" for a status of the server, so that nothing after the event is ever delivered.
type Pull struct {
	nc       *nats.Conn
	subject  string         // the subject of pull requests
	Messages chan *nats.Msg // receives events, and the server's statuses: pass each to Take
	sub      *nats.Subscription
	Asked    int  // events that were requested and have not arrived; exported for tests
	heard    bool // something has arrived since the last check
	at       time.Time
}

// NewPull subscribes. No event arrives before the first call of [Pull.Ask]. The caller must call
// [Pull.End].
func NewPull(api *Conn, stream, consumer string) (*Pull, error) {
	p := &Pull{
		nc: api.NATS, subject: api.Subject("$JS.API.CONSUMER.MSG.NEXT." + stream + "." + consumer),
		Messages: make(chan *nats.Msg, Prefetch+pullRoom), at: time.Now(),
	}
	var err error
	if p.sub, err = api.NATS.ChanSubscribe(api.NATS.NewInbox(), p.Messages); err != nil {
		return nil, fmt.Errorf("subscribe to events: %w", err)
	}
	return p, nil
}

// Ask requests more events once half of those requested have arrived.
func (p *Pull) Ask() error {
	if p.Asked > Prefetch/2 {
		return nil
	}
	request := fmt.Appendf(nil, `{"expires":%d,"batch":%d,"max_bytes":%d,"idle_heartbeat":%d}`, PullExpiry, Prefetch-p.Asked, prefetchBytes, PullHeartbeat)
	p.Asked = Prefetch
	if err := p.nc.PublishRequest(p.subject, p.sub.Subject, request); err != nil {
		return fmt.Errorf("request events: %w", err)
	}
	return nil
}

// ErrConsumerGone says that somebody has deleted a consumer, or its stream: another stream of the same
// name may have other events under the same sequences.
var ErrConsumerGone = errors.New("the consumer was deleted")

// consumerDeleted describes a status of the server (nats-server, consumer.go, stopWithFlags).
const consumerDeleted = "Consumer Deleted"

// Take accounts for a message. It reports whether it is an event; otherwise it returns an error if
// there will be no more events.
//
// It recognizes an event by its reply subject, which only the server sets: everything else in the
// message may come from its publisher.
func (p *Pull) Take(m *nats.Msg) (event bool, err error) {
	p.heard = true
	if strings.HasPrefix(m.Reply, "$JS.ACK.") {
		p.Asked--
		return true, nil
	}
	status, left := m.Header.Get("Status"), m.Header.Get("Nats-Pending-Messages")
	switch {
	case status == "100": // a heartbeat
		return false, nil
	case status == "503":
		p.Asked = 0
		return false, fmt.Errorf("%w, or has no leader now (%w)", ErrConsumerGone, nats.ErrNoResponders)
	case status == "408", status == "409" && left != "": // the pull has expired, or its bytes are used up
		n, _ := strconv.Atoi(left)
		p.Asked = max(0, p.Asked-n)
		return false, nil
	case status == "409" && m.Header.Get("Description") == consumerDeleted:
		return false, ErrConsumerGone
	}
	return false, fmt.Errorf("the server ended the pull: %s %s", Clean(status), Clean(m.Header.Get("Description")))
}

// Missed accounts for events that the consumer has skipped: it has advanced by on, [Pull.Take] has
// counted the last, and the others will not arrive.
func (p *Pull) Missed(on uint64) {
	if on > 1 {
		p.Asked = max(0, p.Asked-int(on-1))
	}
}

// Check returns an error if heartbeats are overdue. It must be called regularly. Messages that wait
// in the channel count as heard.
func (p *Pull) Check(now time.Time) error {
	if p.heard || len(p.Messages) > 0 {
		p.heard, p.at = false, now
	}
	if now.Sub(p.at) > 2*PullHeartbeat {
		return jetstream.ErrNoHeartbeat
	}
	return nil
}

// End unsubscribes and drops the messages that wait in the channel.
func (p *Pull) End() { _ = p.sub.Unsubscribe() }

const (
	// InterestTimeout is how long the first pulls may go unanswered: in a cluster, the answer to a
	// consumer's creation can arrive before our server knows where the consumer lives.
	InterestTimeout = 2 * time.Second
	// InterestPause is the pause between these pulls.
	InterestPause = 100 * time.Millisecond
)

// Reply is the content of a delivery's reply subject.
type Reply struct {
	Deliveries uint64    // how often the server has sent it to this consumer; 1 is the first
	Stream     uint64    // sequence in the stream
	Consumer   uint64    // sequence in the consumer: the next delivery has the next number
	Stored     time.Time // when the stream stored it
	Pending    uint64    // events of the partition that this consumer has not sent yet
}

// ErrReply says that a message is no delivery of a consumer.
var ErrReply = errors.New("the message's reply subject is not one of JetStream's")

// ParseReply parses the reply subject of a delivery, or returns [ErrReply]:
//
//	$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]
//
// as nats.go does (jetstream/message.go), but without the allocations of its Metadata: this runs
// for every event.
func ParseReply(reply string) (Reply, error) {
	var tokens [12]string
	n := 0
	for token := range strings.SplitSeq(reply, ".") {
		if n == len(tokens) {
			return Reply{}, ErrReply
		}
		tokens[n] = token
		n++
	}
	if tokens[0] != "$JS" || tokens[1] != "ACK" {
		return Reply{}, ErrReply
	}
	var numbers []string
	switch n {
	case 9:
		numbers = tokens[4:9]
	case 11, 12:
		numbers = tokens[6:11]
	default:
		return Reply{}, ErrReply
	}
	var values [5]uint64
	for i, s := range numbers {
		v, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return Reply{}, ErrReply
		}
		values[i] = v
	}
	return Reply{
		Deliveries: values[0],
		Stream:     values[1],
		Consumer:   values[2],
		Stored:     time.Unix(0, int64(values[3])),
		Pending:    values[4],
	}, nil
}
