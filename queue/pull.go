package queue

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// How much a consumer sends ahead. The bytes exceed MaxMessageBytes: a pull that could not hold the
// next event would never end.
const (
	prefetch      = 500
	prefetchBytes = 1 << 20
	pullExpiry    = 30 * time.Second
	pullHeartbeat = 5 * time.Second
)

// pullRoom is the room for messages other than events: the ends of pulls, and the heartbeats that
// arrive while a handler blocks. Heartbeats stop when the pull ends.
const pullRoom = 100

// pull requests a consumer's events before they are handled. Only one goroutine may use it.
//
// jetstream's Consume is no substitute. It can miss that the next request is due and stall until a
// heartbeat is overdue. It also mistakes an event without a body whose publisher set the header
// "Status: 409" for a status of the server, so that nothing after the event is ever delivered.
type pull struct {
	nc       *nats.Conn
	subject  string // the subject of pull requests
	messages chan *nats.Msg
	sub      *nats.Subscription
	asked    int  // events that were requested and have not arrived
	heard    bool // something has arrived since the last check
	at       time.Time
}

// newPull subscribes. No event arrives before the first call of ask.
func (q *Queue) newPull(stream, consumer string) (*pull, error) {
	p := &pull{
		nc: q.api.NATS, subject: "$JS.API.CONSUMER.MSG.NEXT." + stream + "." + consumer,
		messages: make(chan *nats.Msg, prefetch+pullRoom), at: time.Now(),
	}
	var err error
	if p.sub, err = q.api.NATS.ChanSubscribe(q.api.NATS.NewInbox(), p.messages); err != nil {
		return nil, fmt.Errorf("subscribe to events: %w", err)
	}
	return p, nil
}

// ask requests more events once half of those requested have arrived.
func (p *pull) ask() error {
	if p.asked > prefetch/2 {
		return nil
	}
	request := fmt.Appendf(nil, `{"expires":%d,"batch":%d,"max_bytes":%d,"idle_heartbeat":%d}`, pullExpiry, prefetch-p.asked, prefetchBytes, pullHeartbeat)
	p.asked = prefetch
	if err := p.nc.PublishRequest(p.subject, p.sub.Subject, request); err != nil {
		return fmt.Errorf("request events: %w", err)
	}
	return nil
}

// take accounts for a message. It reports whether it is an event; otherwise it returns an error if
// there will be no more events.
//
// It recognizes an event by its reply subject, which only the server sets: everything else in the
// message may come from its publisher.
func (p *pull) take(m *nats.Msg) (event bool, err error) {
	p.heard = true
	if strings.HasPrefix(m.Reply, "$JS.ACK.") {
		p.asked--
		return true, nil
	}
	status, left := m.Header.Get("Status"), m.Header.Get("Nats-Pending-Messages")
	switch {
	case status == "100": // a heartbeat
		return false, nil
	case status == "503":
		p.asked = 0
		return false, nats.ErrNoResponders
	case status == "408", status == "409" && left != "": // the pull has expired, or its bytes are used up
		n, _ := strconv.Atoi(left)
		p.asked = max(0, p.asked-n)
		return false, nil
	}
	return false, fmt.Errorf("the server ended the pull: %s %s", jsapi.Clean(status), jsapi.Clean(m.Header.Get("Description")))
}

// missed accounts for events that the consumer has skipped: it has advanced by on, take has counted
// the last, and the others will not arrive.
func (p *pull) missed(on uint64) {
	if on > 1 {
		p.asked = max(0, p.asked-int(on-1))
	}
}

// check must be called regularly. It returns an error if heartbeats are overdue. Messages that wait
// in the channel count as heard.
func (p *pull) check(now time.Time) error {
	if p.heard || len(p.messages) > 0 {
		p.heard, p.at = false, now
	}
	if now.Sub(p.at) > 2*pullHeartbeat {
		return jetstream.ErrNoHeartbeat
	}
	return nil
}

// end unsubscribes and drops the messages that wait in the channel.
func (p *pull) end() { _ = p.sub.Unsubscribe() }
