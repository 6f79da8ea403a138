package queue

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How much a consumer sends ahead. The bytes are above MaxMessageBytes: a pull that could not
// hold the next event would never end.
const (
	prefetch      = 500
	prefetchBytes = 1 << 20
	pullExpiry    = 30 * time.Second
	pullHeartbeat = 5 * time.Second
)

// pullRoom is the room for what comes beside events: the ends of pulls, and their heartbeats for as
// long as a handler blocks, which end with the pulls.
const pullRoom = 100

// pull asks a consumer for its events ahead of their handling. It is one goroutine's.
//
// jetstream's Consume is no substitute. It can miss that it is to ask again and stand still until no
// heartbeat comes; and it takes an event without a body whose publisher wrote "Status: 409" into its
// header for the server's own word, so that nothing after it is ever delivered.
type pull struct {
	nc       *nats.Conn
	subject  string // where the consumer is asked
	messages chan *nats.Msg
	sub      *nats.Subscription
	asked    int  // events that have been asked for and have not come
	heard    bool // something came since the last look
	at       time.Time
}

// newPull begins to listen. Nothing comes before it asks.
func (q *Queue) newPull(stream, consumer string) (*pull, error) {
	p := &pull{
		nc: q.nc, subject: "$JS.API.CONSUMER.MSG.NEXT." + stream + "." + consumer,
		messages: make(chan *nats.Msg, prefetch+pullRoom), at: time.Now(),
	}
	var err error
	if p.sub, err = q.nc.ChanSubscribe(q.nc.NewInbox(), p.messages); err != nil {
		return nil, fmt.Errorf("subscribe to events: %w", err)
	}
	return p, nil
}

// ask asks for more once half of what was asked for has come.
func (p *pull) ask() error {
	if p.asked > prefetch/2 {
		return nil
	}
	request := fmt.Appendf(nil, `{"expires":%d,"batch":%d,"max_bytes":%d,"idle_heartbeat":%d}`, pullExpiry, prefetch-p.asked, prefetchBytes, pullHeartbeat)
	p.asked = prefetch
	if err := p.nc.PublishRequest(p.subject, p.sub.Subject, request); err != nil {
		return fmt.Errorf("ask for events: %w", err)
	}
	return nil
}

// take counts what has come. It reports whether it is an event, and otherwise an error if there will
// be no more of them.
//
// An event is told by where it is acknowledged, which the server alone says: whatever else is in it
// can be its publisher's.
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
	case status == "408", status == "409" && left != "": // its time is over, or its bytes are used up
		n, _ := strconv.Atoi(left)
		p.asked = max(0, p.asked-n)
		return false, nil
	}
	return false, fmt.Errorf("the server ends the pull: %s %s", clean(status), clean(m.Header.Get("Description")))
}

// missed takes in by how many events the consumer has gone on: those but the last, which take has
// counted, have not come and will not.
func (p *pull) missed(on uint64) {
	if on > 1 {
		p.asked = max(0, p.asked-int(on-1))
	}
}

// check is called now and then. It returns an error if not even a heartbeat has come for too long.
// What waits here has come.
func (p *pull) check(now time.Time) error {
	if p.heard || len(p.messages) > 0 {
		p.heard, p.at = false, now
	}
	if now.Sub(p.at) > 2*pullHeartbeat {
		return jetstream.ErrNoHeartbeat
	}
	return nil
}

// end forgets what waits here.
func (p *pull) end() { _ = p.sub.Unsubscribe() }
