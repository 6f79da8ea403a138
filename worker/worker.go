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
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
)

// Caller makes one attempt to deliver a body. [userpilot.Client] implements it; tests use others.
// Attempt must be safe for concurrent use.
type Caller interface {
	// Attempt returns the answer's status, and nil on a 2xx or else a *userpilot.Error.
	// It calls the hooks of the [userpilot.Call] in the order documented there.
	Attempt(ctx context.Context, call userpilot.Call) (status int, err error)
}

// Config configures a worker. Queue and Client are required; a zero value elsewhere means the
// default named at the field.
type Config struct {
	Queue  *queue.Queue
	Client Caller

	Rate           ratelimit.Rate // of the whole fleet; the zero value is no limit
	Burst          int            // calls that may be made back to back after idle time; default: see [ratelimit.Rate.DefaultBurst]
	RatePerReplica bool           // Rate applies to this replica alone; no ledger is used

	Concurrency int           // maximum number of calls in flight, default 64; of those that take longer than a second, four times as many
	NoCoalesce  bool          // make one call per event
	MaxAttempts int           // counted attempts before an event becomes a dead letter, default 10
	Timeout     time.Duration // of one attempt, default 10s

	BackoffInitial time.Duration // first backoff of a failing lane and of the breaker, default 500ms
	BackoffMax     time.Duration // default 1m
	Memory         int64         // limit for waiting events in bytes, default 64 MiB
	BackfillShare  float64       // part of the calls that backfill gets even if live events would use all of them, 0 (the default) to 1

	Member     fleet.MemberConfig // New fills in the fields that report on this worker
	Key        func() string      // returns the fingerprint of the API key in use, for operators; must not block
	KeyChanged <-chan struct{}    // a receive means that there is a new key: a held replica probes at once
	Log        *slog.Logger       // nil discards; a separate goroutine calls the handler, which may block

	Tracer trace.Tracer // records spans for waits, calls and dead letters; nil records none
	URL    string       // the URL that Client calls, for spans
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
	case c.BackfillShare < 0 || c.BackfillShare > 1:
		return c, errors.New("backfill-share: must be from 0 to 1")
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

// Worker delivers one replica's share of the events. Create it with [New] and start it with
// [Worker.Run]. Its other methods are safe for concurrent use.
type Worker struct {
	config  Config
	queue   *queue.Queue
	fleet   *fleet.Fleet
	letters *deadletter.Store
	limiter limiter
	metrics *metrics
	gauges  gauges
	traces  *traces                      // nil without a tracer
	counts  atomic.Pointer[queue.Counts] // nil while unknown
	paused  atomic.Pointer[[]string]     // partitions whose consumers are paused; nil while unknown
	idle    stopwatch                    // time that the dispatcher waits for work, for the gate or for a token
	log     *slog.Logger

	senders       chan struct{} // semaphore: one slot for each call that is prepared or in flight, but slow ones
	inFlight      chan struct{} // the same with slow ones
	calls         chan *call
	turn          turn          // of the call that takes the next token
	wake          chan struct{} // wakes the dispatcher after a change
	reportChanged chan struct{} // makes the member publish its report

	background sync.WaitGroup // crews' tasks and cooldown broadcasts

	mu                 sync.Mutex
	partitions         map[*fleet.Claim]*partition
	ready              laneQueue
	errands            crew // reads what lanes wait for
	archivers          crew // separate, so that a full dead-letter stream does not delay the reads
	reloadingArchivers crew // for dead letters whose bodies must be reloaded
	memory             memory
	gate               gate
	failing            map[*lane]struct{} // the lanes that are failing: those that operators are told
	waiting            waiting
	blocked            []*lane       // in all partitions
	pending            int           // calls without a token
	pendingLive        int           // those of them that were live when they were prepared
	lead               time.Duration // time from pop until ready for a token, of the slowest recent call
	invalidUntil       time.Time     // no call begins before: the membership was not valid
	sending            integral      // calls in flight
	lastProgress       time.Time     // last call, settlement or stored dead letter, or time with nothing to call
	stall              stall
	unconnected        string // error of the last failed connection; empty after a call
	history            history
	logged             gateState
	archiveFailures    archiveFailures
	deaths             deathLog
	versionsTrouble    transitionLog
}

// New checks the configuration and returns a worker that is not running yet.
func New(config Config) (*Worker, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	w := &Worker{
		config: config, queue: config.Queue, fleet: fleet.New(config.Queue), letters: deadletter.NewStore(config.Queue), log: config.Log, metrics: newMetrics(), gauges: newGauges(), traces: newTraces(&config), idle: newStopwatch(),
		senders: make(chan struct{}, config.Concurrency), inFlight: make(chan struct{}, slowCalls*config.Concurrency), calls: make(chan *call),
		wake: make(chan struct{}, 1), reportChanged: make(chan struct{}, 1),
		errands: crew{size: errandsAtOnce}, archivers: crew{size: archiversAtOnce}, reloadingArchivers: crew{size: reloadingArchiversAtOnce},
		partitions:      map[*fleet.Claim]*partition{},
		failing:         map[*lane]struct{}{},
		memory:          newMemory(config.Memory),
		ready:           laneQueue{share: config.BackfillShare},
		gate:            gate{stop: stop{initial: config.BackoffInitial, longest: config.BackoffMax}},
		versionsTrouble: transitionLog{begun: "property versions cannot be read, users with dead letters wait", over: "property versions can be read again"},
	}
	member := &w.config.Member
	member.Permissions, member.Prepare = Permissions(config.Queue.Topology()), w.letters.ReadSeal
	member.Report, member.Changed = w.report, w.reportChanged
	switch {
	case !config.RatePerReplica: // without a rate too: other replicas may have one
		w.limiter = ratelimit.NewLedger(config.Queue, config.Rate, config.Burst, w.fleet.Peers())
		member.Rate, member.Burst = config.Rate, config.Burst
	case config.Rate.Unlimited():
		w.limiter = unlimited{}
	default:
		w.limiter = newBucket(config.Rate, config.Burst)
		member.OwnRate = config.Rate
	}
	return w, nil
}

// closeTime bounds how long a stopping worker returns unused slots and flushes its log.
const closeTime = time.Second

// Run blocks and delivers events until ctx ends. Then it begins no more calls, waits for those in
// flight and for their settlement, releases its partitions and returns nil. It returns an error if
// the streams do not match this configuration. Run must be called only once.
func (w *Worker) Run(ctx context.Context) error {
	dispatching, stop := context.WithCancel(ctx)
	defer stop()
	w.report() // starts the history
	w.mu.Lock()
	w.lastProgress = time.Now()
	w.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { w.dispatch(dispatching, &wg) })
	wg.Go(func() { w.watchStreams(dispatching) })
	wg.Go(func() { w.watchStall(dispatching) })
	wg.Go(func() { w.watchDeaths(dispatching) })
	err := w.fleet.Work(ctx, w.config.Member, w)
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

// wakeUp makes the dispatcher check its conditions again.
func (w *Worker) wakeUp() { signal(w.wake) }

// signal wakes the receiver of ch without blocking. ch buffers one signal, which is enough.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
