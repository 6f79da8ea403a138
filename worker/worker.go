package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/asynclog"
	"github.com/identify-worker/identify-worker/userpilot"
)

// Caller makes one attempt to deliver a body. [userpilot.Client] is one; tests have others.
type Caller interface {
	// Attempt returns nil on a 2xx and a *userpilot.Failure otherwise, and the answer's status.
	// What a [userpilot.Call] asks for is done in its order.
	Attempt(ctx context.Context, call userpilot.Call) (status int, err error)
}

// Config says how a worker works. Queue and Client are required; the zero values of the
// others are the defaults named here.
type Config struct {
	Queue  *queue.Queue
	Client Caller

	Rate           queue.Rate // of the fleet; zero is no limit
	Burst          int        // calls that may follow at once after a pause; default: see [queue.Rate.DefaultBurst]
	RatePerReplica bool       // Rate is this replica's own, and needs no ledger

	Concurrency int           // most calls in flight, default 64
	NoCoalesce  bool          // one call for each event
	MaxAttempts int           // attempts that count before an event is dead, default 10
	Timeout     time.Duration // of one attempt, default 10s

	BackoffInitial time.Duration // of a failing lane, and of the breaker, default 500ms
	BackoffMax     time.Duration // default 1m
	Memory         int64         // bytes that waiting events may take, default 64 MiB

	Member     queue.MemberConfig // what it tells of this worker is filled in by New
	Key        func() string      // fingerprint of the API key in use, for operators; must not block
	KeyChanged <-chan struct{}    // a receive ends a hold's wait: there is a new key
	Log        *slog.Logger       // default discards; its handler is called by a goroutine of its own, and may block

	Tracer trace.Tracer // makes spans of what events wait for, of calls and of deaths; nil makes none
	URL    string       // that Client calls, for spans
}

func (c Config) withDefaults() (Config, error) {
	if c.Queue == nil || c.Client == nil {
		return c, errors.New("worker: Queue and Client are required")
	}
	orDefault(&c.Concurrency, 64)
	orDefault(&c.MaxAttempts, 10)
	orDefault(&c.Timeout, 10*time.Second)
	orDefault(&c.BackoffInitial, 500*time.Millisecond)
	orDefault(&c.BackoffMax, time.Minute)
	orDefault(&c.Memory, 64<<20)
	if c.Key == nil {
		c.Key = func() string { return "" }
	}
	c.Log = asynclog.Wrap(c.Log)
	switch {
	case c.Concurrency < 0 || c.MaxAttempts < 0 || c.Timeout < 0 || c.BackoffInitial < 0 || c.Burst < 0:
		return c, errors.New("worker: numbers and times must not be negative")
	case c.BackoffMax < c.BackoffInitial:
		return c, errors.New("backoff-max: must not be below backoff-initial")
	case c.Memory < 1<<20:
		return c, errors.New("memory: must be 1 MiB or more")
	case !c.Rate.Unlimited() && c.Burst > c.Rate.Calls:
		return c, fmt.Errorf("burst: %d is more than the rate's %d calls", c.Burst, c.Rate.Calls)
	}
	return c, nil
}

func orDefault[T comparable](value *T, otherwise T) {
	var zero T
	if *value == zero {
		*value = otherwise
	}
}

// Worker delivers one replica's share of the events. Create it with [New] and let it work
// with [Worker.Run]. Its other methods are safe for concurrent use.
type Worker struct {
	config  Config
	queue   *queue.Queue
	limiter limiter
	metrics *metrics
	gauges  gauges
	traces  *traces // nil without a tracer
	counts  atomic.Pointer[queue.Counts]
	idle    stopwatch // the dispatcher's: it waits for work, for the gate or for a token
	log     *slog.Logger

	senders       chan struct{} // one token for each call that is prepared or in flight
	calls         chan *call
	tokenTurn     chan struct{} // whose call takes the next token; holds one
	wake          chan struct{} // tells the dispatcher that something has changed
	reportChanged chan struct{} // tells the fleet that there is something new to report

	background sync.WaitGroup // errands, and a silence announced

	mu                 sync.Mutex
	partitions         map[*queue.Claim]*partition
	ready              laneQueue
	errands            crew // that read what lanes wait for
	archivers          crew // beside them: a full dead-letter stream must not keep others waiting
	reloadingArchivers crew // of those whose bodies are read again
	memory             memory
	gate               gate
	waiting            int           // events in all lanes
	blocked            int           // lanes in all partitions that are barred
	pending            int           // calls that have no token yet
	lead               time.Duration // that the slowest of the last calls took until it was prepared for its token
	unsureUntil        time.Time     // until then no call begins: the membership was not certain
	sending            integral      // calls in flight
	lastProgress       time.Time     // when something was last called, settled or stored, or there was nothing to call
	stall              stall
	unconnected        string // why the last connection could not be made; empty after a call
	history            history
	logged             gateState
	archiveFailures    archiveFailures
	deaths             deathLog
	versionsTrouble    trouble
}

// New checks the configuration and returns a worker that does not run yet.
func New(config Config) (*Worker, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	w := &Worker{
		config: config, queue: config.Queue, log: config.Log, metrics: newMetrics(), gauges: newGauges(), traces: newTraces(&config), idle: newStopwatch(),
		senders: make(chan struct{}, config.Concurrency), calls: make(chan *call), tokenTurn: make(chan struct{}, 1),
		wake: make(chan struct{}, 1), reportChanged: make(chan struct{}, 1),
		errands: crew{size: errandsAtOnce}, archivers: crew{size: archiversAtOnce}, reloadingArchivers: crew{size: reloadingArchiversAtOnce},
		partitions:      map[*queue.Claim]*partition{},
		memory:          newMemory(config.Memory),
		gate:            gate{initial: config.BackoffInitial, longest: config.BackoffMax},
		versionsTrouble: trouble{begun: "what newer events have set cannot be read, users with dead letters wait", over: "what newer events have set can be read again"},
	}
	member := &w.config.Member
	member.Report, member.Changed = w.report, w.reportChanged
	switch {
	case !config.RatePerReplica: // without a rate too: other replicas may have one
		w.limiter = config.Queue.NewLedger(config.Rate, config.Burst)
		member.Rate, member.Burst = config.Rate, config.Burst
	case config.Rate.Unlimited():
		w.limiter = unlimited{}
	default:
		w.limiter = newBucket(config.Rate, config.Burst)
		member.OwnRate = config.Rate
	}
	return w, nil
}

// closeTime bounds what a worker that stops does for the others.
const closeTime = time.Second

// Run works until ctx ends. Then it begins no more calls, waits for those in flight and for
// their settlement, gives its partitions back, and returns nil. It returns an error if
// the streams are not what this configuration needs. It must be called once.
func (w *Worker) Run(ctx context.Context) error {
	dispatching, stop := context.WithCancel(ctx)
	defer stop()
	w.report() // the history begins
	w.mu.Lock()
	w.lastProgress = time.Now()
	w.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { w.dispatch(dispatching) })
	for range w.config.Concurrency {
		wg.Go(w.send)
	}
	wg.Go(func() { w.watchStreams(dispatching) })
	wg.Go(func() { w.watchStall(dispatching) })
	wg.Go(func() { w.watchDeaths(dispatching) })
	err := w.queue.Work(ctx, w.config.Member, w)
	stop()
	wg.Wait()
	w.background.Wait()
	w.logDeaths()
	closing, done := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer done()
	w.limiter.Close(closing)
	asynclog.Flush(closing, w.log)
	return err
}

// wakeUp lets the dispatcher look again.
func (w *Worker) wakeUp() { signal(w.wake) }

// signal lets whoever receives from ch look again. ch holds one signal: more would say no more.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
