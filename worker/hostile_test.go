package worker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// Names of headers that have a meaning for NATS, for nats.go or for us, with values to try.
var (
	hostileNames = []string{
		"Status", "Description", "Nats-Pending-Messages", "Nats-Pending-Bytes", "Nats-Msg-Id", "Nats-Pin-Id", "Nats-Rollup", "Nats-TTL",
		"Nats-Expected-Stream", "Nats-Expected-Last-Sequence", "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Last-Msg-Id",
		"Nats-Sequence", "Nats-Subject", "Nats-Time-Stamp", "Nats-Stream", "Nats-Num-Pending", "Nats-Last-Sequence", "Nats-UpTo-Sequence",
		"Nats-Last-Consumer", "Nats-Last-Stream", "Nats-Consumer-Stalled", "Nats-Marker-Reason", "Nats-Trace-Dest", "Nats-Trace-Only", "Nats-Schedule",
		"Nats-Schedule-Target", "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit", "Nats-Incr", "Nats-Required-Api-Level", "Nats-Stream-Source",
		"KV-Operation", "Nats-Service-Error", "Nats-Service-Error-Code", "traceparent", "tracestate", "Traceparent",
		"Dead-Replays", "Dead-Origin", "Dead-Letter", "Dead-Letter-Id", "Dead-Run", "Dead-Forced", "Dead-Untracked", "Dead-History", "Dead-Published-At",
		"Dead-Reason", "Dead-User", "Dead-Sequence", "Any",
	}
	hostileValues = []string{
		"100", "204", "400", "404", "408", "409", "423", "503", "Consumer Deleted", "Idle Heartbeat", "Message Size Exceeds MaxBytes", "Leadership Change",
		"", "0", "1", "500", "-1", "18446744073709551616", "x", "true", "all", "sub", "DEL", "PURGE", "MaxAge", "USERPILOT_IDENTIFY", "_INBOX.x", ">",
		"0.0", "1700000000000000000.1", "9999999999999999999.9", "2026-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "\x00\xff",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", strings.Repeat("long ", 1000),
	}
	// Where the server's acknowledgement goes. What more a publisher without an account of its own could
	// overwrite so is not for here.
	hostileReplies = []string{
		"", "_INBOX.eve", "userpilot.identify", "userpilot.identify.loop", "userpilot.identify-dlq.1.1", "userpilot.identify-audit.action.X.begun", "$JS.ACK.x.y.1.2.3.4.5",
		"_R_.x", "_GR_.x", "$SYS.REQ.SERVER.PING", "$JS.API.STREAM.PURGE.USERPILOT_IDENTIFY", "$JS.API.CONSUMER.LIST.USERPILOT_IDENTIFY", "$JS.EVENT.x", "a",
	}
)

// picked returns up to four headers; 16 bits of the number select each one's name and value.
func picked(picks uint64) string {
	var b strings.Builder
	for ; picks != 0; picks >>= 16 {
		if n := int(picks & 0xff); n > 0 {
			fmt.Fprintf(&b, "%s: %s\r\n", hostileNames[(n-1)%len(hostileNames)], hostileValues[int(picks>>8&0xff)%len(hostileValues)])
		}
	}
	return b.String()
}

// pick returns the number that selects one header.
func pick(name, value string) uint64 {
	index := func(of []string, what string) uint64 {
		for i, x := range of {
			if x == what {
				return uint64(i)
			}
		}
		panic(what)
	}
	return index(hostileNames, name) + 1 | index(hostileValues, value)<<8
}

// eve is a publisher that writes the NATS protocol by hand.
type eve struct {
	t      *testing.T
	server *embedded.Server
	conn   net.Conn
	pongs  chan struct{} // closed when the connection ends
}

// connect connects unless there is a connection.
func (e *eve) connect() {
	if e.conn != nil {
		return
	}
	conn, err := e.server.InProcessConn()
	must(e.t, err)
	pongs := make(chan struct{}, 1)
	e.conn, e.pongs = conn, pongs
	greeted := make(chan struct{})
	go func() {
		defer close(pongs)
		once := sync.OnceFunc(func() { close(greeted) })
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			switch line := lines.Text(); {
			case strings.HasPrefix(line, "INFO"):
				once()
			case line == "PING":
				_, _ = conn.Write([]byte("PONG\r\n"))
			case line == "PONG":
				pongs <- struct{}{}
			}
		}
	}()
	select {
	case <-greeted:
	case <-time.After(hostilePatience):
		e.t.Fatal("the server does not greet")
	}
	e.write([]byte(`CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}` + "\r\n"))
}

func (e *eve) write(p []byte) {
	_ = e.conn.SetWriteDeadline(time.Now().Add(hostilePatience))
	_, _ = e.conn.Write(p)
}

// publish sends a message and blocks until the server has processed it, or has closed the connection
// because of it.
func (e *eve) publish(subject, reply, header string, body []byte) {
	e.connect()
	header = "NATS/1.0" + header + "\r\n"
	e.write(append(append(fmt.Appendf(nil, "HPUB %s %s %d %d\r\n%s", subject, reply, len(header), len(header)+len(body), header), body...), "\r\nPING\r\n"...))
	select {
	case _, more := <-e.pongs:
		if !more {
			_ = e.conn.Close()
			e.conn = nil
		}
	case <-time.After(hostilePatience):
		e.t.Fatal("the server does not answer")
	}
}

// hostilePatience is a timeout that is far longer than anything here takes.
const hostilePatience = 8 * time.Second

// town is a worker whose API accepts everything, with one honest user in each partition.
type town struct {
	queue    *queue.Queue
	worker   *worker.Worker
	js       jetstream.JetStream
	registry *prometheus.Registry
	subjects []string // of the honest users
	round    int
	base     uint64 // last sequence before the worker began

	mu     sync.Mutex
	newest map[string]int // newest event of each honest user that the API has received
	news   chan struct{}
}

// Attempt implements [worker.Caller].
func (x *town) Attempt(_ context.Context, call userpilot.Call) (int, error) {
	var event struct {
		User     string `json:"user_id"`
		Metadata struct {
			Round int `json:"round"`
		} `json:"metadata"`
	}
	if json.Unmarshal(call.Body, &event) == nil && strings.HasPrefix(event.User, "honest ") {
		x.mu.Lock()
		x.newest[event.User] = event.Metadata.Round
		x.mu.Unlock()
	}
	select {
	case x.news <- struct{}{}:
	default:
	}
	return 202, nil
}

func newTown(f *testing.F, server *embedded.Server) *town {
	f.Helper()
	nc, err := server.Connect(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(nc.Close)
	x := &town{newest: map[string]int{}, news: make(chan struct{}, 1), registry: prometheus.NewRegistry()}
	if x.queue, err = queue.New(nc, queue.Topology{Partitions: 3}, nil); err == nil {
		_, err = x.queue.Setup(f.Context(), false)
	}
	if err == nil {
		x.js, err = jetstream.New(nc)
	}
	if err == nil {
		err = x.settle(f.Context())
	}
	if err == nil {
		x.worker, err = worker.New(worker.Config{Queue: x.queue, Client: x, Concurrency: 4})
	}
	if err != nil {
		f.Fatal(err)
	}
	x.registry.MustRegister(x.worker)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = x.worker.Run(ctx)
	}()
	f.Cleanup(func() { cancel(); <-ended })
	return x
}

// settle finds a user in each partition.
func (x *town) settle(ctx context.Context) error {
	stream, err := x.js.Stream(ctx, x.queue.Topology().StreamName())
	x.subjects = []string{x.queue.Topology().PlainSubject()}
	taken := map[string]bool{}
	for i := 0; err == nil && len(taken) < 3; i++ {
		subject := x.queue.Topology().Subject(fmt.Sprint("honest ", i))
		var ack *jetstream.PubAck
		if ack, err = x.js.Publish(ctx, subject, nil); err != nil {
			break
		}
		var m *jetstream.RawStreamMsg
		if m, err = stream.GetMsg(ctx, ack.Sequence); err == nil && !taken[m.Subject] {
			taken[m.Subject] = true
			x.subjects = append(x.subjects, subject)
		}
		x.base = ack.Sequence
	}
	if err == nil {
		err = stream.Purge(ctx)
	}
	return err
}

// live publishes an event of each honest user. It blocks until the API has all of them, the stream is
// empty and each event has an outcome.
func (x *town) live(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hostilePatience)
	defer cancel()
	x.round++
	for i, subject := range x.subjects {
		_, err := x.js.Publish(ctx, subject, fmt.Appendf(nil, `{"user_id":"honest %d","metadata":{"round":%d}}`, i, x.round))
		must(t, err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for what := x.missing(ctx); what != ""; what = x.missing(ctx) {
		select {
		case <-x.news:
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(what)
		}
	}
	for cause, n := range x.worker.GiveUps() {
		t.Fatalf("%d claims were given up: %s", n, cause)
	}
	if err := x.worker.Ready(); err != nil || trouble(x.worker.Snapshot()) != "" {
		t.Fatalf("ready: %v, %s", err, trouble(x.worker.Snapshot()))
	}
}

// missing describes what is not yet as it must be in the end.
func (x *town) missing(ctx context.Context) string {
	x.mu.Lock()
	for i := range x.subjects {
		if user := fmt.Sprint("honest ", i); x.newest[user] != x.round {
			x.mu.Unlock()
			return user + "'s event was not delivered"
		}
	}
	x.mu.Unlock()
	stream, err := x.js.Stream(ctx, x.queue.Topology().StreamName())
	if err != nil {
		return err.Error()
	}
	state := stream.CachedInfo().State
	if state.Msgs > 0 {
		return fmt.Sprintf("%d events were not settled", state.Msgs)
	}
	if outcomes := x.outcomes(); outcomes != state.LastSeq-x.base {
		return fmt.Sprintf("%d events have %d outcomes", state.LastSeq-x.base, outcomes)
	}
	return ""
}

// outcomes counts the events that were delivered, are dead or superseded.
func (x *town) outcomes() (n uint64) {
	families, err := x.registry.Gather()
	for _, family := range families {
		if err == nil && family.GetName() == "identify_events_total" {
			for _, m := range family.GetMetric() {
				n += uint64(m.GetCounter().GetValue())
			}
		}
	}
	return n
}

// Whatever a publisher writes into a message, it is an event: it is delivered or becomes a dead letter,
// and the worker serves later events.
func FuzzHostileEvents(f *testing.F) {
	server, err := embedded.Start(embedded.Config{Dir: f.TempDir(), NoSync: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(server.Shutdown)
	x := newTown(f, server)
	for _, status := range []string{"100", "400", "404", "408", "409", "423", "503"} {
		f.Add("", "", pick("Status", status), []byte{}, uint8(0), uint8(1))
		f.Add(" "+status, "", uint64(0), []byte{}, uint8(0), uint8(2)) // in the first line, as the server does
	}
	f.Add("", "", pick("Status", "409")|pick("Description", "Consumer Deleted")<<16, []byte{}, uint8(1), uint8(0))
	f.Add("", "", pick("Status", "409")|pick("Description", "Message Size Exceeds MaxBytes")<<16|pick("Nats-Pending-Messages", "500")<<32, []byte{}, uint8(0), uint8(3))
	f.Add("", "", pick("Status", "100")|pick("Nats-Last-Consumer", "1")<<16|pick("Nats-Consumer-Stalled", "x")<<32, []byte{}, uint8(0), uint8(0))
	f.Add("", "", pick("Nats-Pin-Id", "x"), []byte(`{"user_id":"eve","metadata":{"a":1}}`), uint8(0), uint8(1))
	f.Add("", "", pick("Nats-Sequence", "1")|pick("Nats-Subject", ">")<<16|pick("Nats-Num-Pending", "0")<<32|pick("Nats-Time-Stamp", "x")<<48, []byte{}, uint8(2), uint8(1))
	f.Add("", "", pick("Dead-Replays", "1")|pick("Dead-Letter", "1700000000000000000.1")<<16|pick("Dead-Forced", "true")<<32, []byte(`{"user_id":"eve","metadata":{"a":1}}`), uint8(3), uint8(1))
	f.Add("", "", pick("Dead-Origin", "9999999999999999999.9")|pick("Dead-History", "x")<<16, []byte(`{"user_id":"eve","metadata":{"a":2}}`), uint8(4), uint8(1))
	f.Add("", "", pick("Nats-Msg-Id", "x")|pick("Nats-Rollup", "all")<<16|pick("Nats-Expected-Last-Sequence", "1")<<32|pick("Nats-TTL", "1")<<48, []byte("x"), uint8(5), uint8(0))
	f.Add("", "", pick("KV-Operation", "PURGE")|pick("Nats-Marker-Reason", "MaxAge")<<16, []byte{}, uint8(6), uint8(2))
	f.Add("", "", pick("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")|pick("tracestate", strings.Repeat("long ", 1000))<<16, []byte(`{"user_id":"eve"}`), uint8(0), uint8(2))
	f.Add("\r\nno header at all", ": x\r\n\r\n\r\n \x00: \xff\r\nStatus:503\r\n", uint64(0), []byte{}, uint8(7), uint8(1))
	f.Add(" 404 No Messages\r\n\r\n", "Status: 100\r\nStatus: 409\r\nstatus: 408\r\n", uint64(0), []byte{}, uint8(10), uint8(1))
	f.Fuzz(func(t *testing.T, first, block string, picks uint64, body []byte, reply, key uint8) {
		e := &eve{t: t, server: server}
		defer func() {
			if e.conn != nil {
				_ = e.conn.Close()
			}
		}()
		subject := x.queue.Topology().PlainSubject()
		if key > 0 {
			subject = x.queue.Topology().Subject(fmt.Sprint("eve ", key))
		}
		header := first + "\r\n" + block + picked(picks)
		e.publish(subject, hostileReplies[int(reply)%len(hostileReplies)], header, body)
		x.live(t)
	})
}

// The server takes an event whose key is a wildcard and hashes it into no partition. It is worked all
// the same, and the replica keeps its partitions.
func TestKeyIsAWildcard(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		r := s.start(nil)
		s.publish("before", "")
		s.drain(time.Minute)
		raw, err := s.InProcessConn()
		must(t, err)
		defer func() { _ = raw.Close() }()
		body := `{"user_id":"*","metadata":{"n":1}}`
		lines := bufio.NewScanner(raw)
		lines.Scan() // INFO
		go func() {
			_, _ = fmt.Fprintf(raw, "CONNECT {\"verbose\":false}\r\nPUB userpilot.identify.* %d\r\n%s\r\nPING\r\n", len(body), body)
		}()
		for lines.Scan() && lines.Text() != "PONG" {
			t.Log(lines.Text())
		}
		s.publish("after", "")
		s.drain(time.Minute)
		r.stop()
		if _, found := s.api.Profile("*"); !found {
			t.Error("the event was not delivered")
		}
		if strings.Contains(s.logs.String(), "WARN") {
			t.Error(s.logs.String())
		}
	})
}
