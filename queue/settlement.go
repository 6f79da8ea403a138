package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// settleTimeout is how long the server may take to confirm a removal. After that nobody
// knows whether it took place, and the claim is given up.
const settleTimeout = 5 * time.Second

// settler removes events from the stream and calls back once that is certain.
//
// Events of one settlement leave the stream oldest first. So if it is cut short, what is
// left is the newest of them, and sending those again, together, takes no user back.
type settler struct {
	nc     *nats.Conn
	inbox  string // replies arrive at <inbox>.<sequence>
	remove remover
	fail   func(error)
	sub    *nats.Subscription

	mu   sync.Mutex
	open map[uint64]*settlement // by the sequence of each event not yet confirmed
}

// settlement is one call's events on their way out of the stream.
type settlement struct {
	deliveries []Delivery
	confirmed  int
	since      time.Time // of the request, or of the last confirmation
	done       func()
}

// remover is how a server is asked to remove an event, and how its answer reads.
type remover interface {
	// pipelined reports whether requests are carried out in the order in which they were
	// sent, so that there is no need to wait for one before sending the next.
	pipelined() bool
	request(d Delivery) (subject string, body []byte)
	// confirmed reads the answer: nil if the event is certainly gone.
	confirmed(answer *nats.Msg) error
}

var errTryAgain = errors.New("the server asks to try again")

func newSettler(nc *nats.Conn, r remover, fail func(error)) (*settler, error) {
	s := &settler{nc: nc, inbox: nc.NewInbox(), remove: r, fail: fail, open: map[uint64]*settlement{}}
	sub, err := nc.Subscribe(s.inbox+".*", s.answered)
	if err != nil {
		return nil, fmt.Errorf("subscribe to confirmations: %w", err)
	}
	// Nothing may be dropped here, and one small answer for each event in flight is all that comes.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	s.sub = sub
	return s, nil
}

// settle starts a settlement of one user's events, oldest first. done is called from the
// connection's goroutine when all are certainly gone; it is not called otherwise.
func (s *settler) settle(ds []Delivery, done func()) {
	st := &settlement{deliveries: ds, since: time.Now(), done: done}
	s.mu.Lock()
	for _, d := range ds {
		s.open[d.Sequence] = st
	}
	s.mu.Unlock()
	first := ds
	if !s.remove.pipelined() {
		first = ds[:1]
	}
	for _, d := range first {
		s.send(d)
	}
}

func (s *settler) send(d Delivery) {
	subject, body := s.remove.request(d)
	if err := s.nc.PublishRequest(subject, s.inbox+"."+strconv.FormatUint(d.Sequence, 10), body); err != nil {
		s.fail(fmt.Errorf("settle an event: %w", err))
	}
}

func (s *settler) answered(m *nats.Msg) {
	seq, err := strconv.ParseUint(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], 10, 64)
	if err != nil {
		return
	}
	if err := s.remove.confirmed(m); err != nil {
		s.refused(seq, err)
		return
	}
	s.mu.Lock()
	st, ok := s.open[seq]
	if !ok {
		s.mu.Unlock()
		return
	}
	delete(s.open, seq)
	st.confirmed++
	st.since = time.Now()
	rest := st.deliveries[st.confirmed:]
	s.mu.Unlock()
	switch {
	case len(rest) == 0:
		st.done()
	case !s.remove.pipelined():
		s.send(rest[0])
	}
}

func (s *settler) refused(seq uint64, err error) {
	s.mu.Lock()
	st, ok := s.open[seq]
	s.mu.Unlock()
	switch {
	case !ok:
	case errors.Is(err, errTryAgain) && time.Since(st.since) < settleTimeout:
		s.send(st.deliveries[st.confirmed])
	default:
		s.fail(fmt.Errorf("settle an event: %w", err))
	}
}

// overdue reports whether a confirmation is missing for longer than the timeout.
func (s *settler) overdue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.open {
		if now.Sub(st.since) > settleTimeout {
			return true
		}
	}
	return false
}

func (s *settler) close() { _ = s.sub.Unsubscribe() }

// confirmedAck removes by a consumer's acknowledgement. On one server its confirmation
// comes after the removal, and acknowledgements are carried out in the order sent (the
// consumer has one queue of them: server/consumer.go, processInboundAcks).
type confirmedAck struct{}

func (confirmedAck) pipelined() bool { return true }

func (confirmedAck) request(d Delivery) (string, []byte) { return d.reply, []byte("+ACK") }

func (confirmedAck) confirmed(answer *nats.Msg) error {
	if len(answer.Data) == 0 && answer.Header.Get("Status") != "" {
		return errors.New("no consumer took the acknowledgement")
	}
	return nil
}

// deletion removes by sequence. In a cluster a confirmed ack is not a removal yet: the
// stream's leader proposes that later, and it can be lost with the leader. The answer to
// a deletion comes after the stream's commit, and it clears the consumer's
// pending too. Requests may overtake one another, so they go one by one.
type deletion struct{ stream string }

func (deletion) pipelined() bool { return false }

func (x deletion) request(d Delivery) (string, []byte) {
	return "$JS.API.STREAM.MSG.DELETE." + x.stream, fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, d.Sequence)
}

// Error codes of the server's answer to STREAM.MSG.DELETE.
const (
	codeAlreadyGone = 10043
	codeTryAgain    = 10008
)

func (deletion) confirmed(answer *nats.Msg) error {
	var reply struct {
		Success bool `json:"success"`
		Error   *struct {
			Code        int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return fmt.Errorf("read the answer to a deletion: %w", err)
	}
	switch {
	case reply.Success, reply.Error != nil && reply.Error.Code == codeAlreadyGone:
		return nil
	case reply.Error != nil && reply.Error.Code == codeTryAgain:
		return errTryAgain
	case reply.Error != nil:
		return errors.New(reply.Error.Description)
	}
	return errors.New("the answer to a deletion says neither success nor error")
}
