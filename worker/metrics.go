package worker

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/userpilot"
)

// metrics holds the worker's counters and histograms. No label ever carries a user.
type metrics struct {
	outcomes        *prometheus.CounterVec
	deliver         prometheus.Counter
	calls           *prometheus.CounterVec
	ok              prometheus.Counter
	duration        prometheus.Histogram
	latency         *prometheus.HistogramVec
	latencyOf       map[bool]prometheus.Observer // by whether it is backfill
	coalesced       prometheus.Counter
	groups          prometheus.Counter
	archiveFailures prometheus.Counter
	unmade          *prometheus.CounterVec
	stops           *prometheus.CounterVec

	// The same counts for Snapshot: client_golang has no cheap way to read its counters.
	deliveredEvents, mergedEvents, deadEvents, supersededEvents, madeCalls, failedCalls, refusedCalls atomic.Uint64
	backfillEvents                                                                                    atomic.Uint64 // delivered, dead or superseded

	lastFailure atomic.Pointer[string] // of a call; fit for a log
}

func newMetrics() *metrics {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "identify_events_total", Help: "Events by outcome: delivered at the 2xx, dead when the dead letter is stored, superseded if newer events had set everything that a late event sets.",
		}, []string{"outcome"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "identify_calls_total", Help: "Attempts by result; error is an attempt without an answer, or with a web page for one.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "identify_call_duration_seconds", Help: "Time of one attempt.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "identify_delivery_latency_seconds", Help: "Time from an event's publication to its delivery, by class: live or backfill.",
			Buckets: prometheus.ExponentialBuckets(0.005, 4, 12),
		}, []string{"class"}),
		coalesced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "identify_coalesced_events_total", Help: "Events that were delivered in another event's call.",
		}),
		archiveFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "identify_dead_letter_failures_total", Help: "Failed attempts to store a dead letter. The event waits and the worker retries.",
		}),
	}
	m.unmade = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "identify_unmade_calls_total", Help: "Calls that were prepared but not made, by reason: nothing was sent. slot_void and lost_connection have cost a token.",
	}, []string{"reason"})
	for _, reason := range unmadeReasons() {
		m.unmade.WithLabelValues(reason)
	}
	m.stops = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "identify_stops_total", Help: "How often this replica stopped all calls, by reason: a hold's, or outage. One that ends within a second counts, too.",
	}, []string{"reason"})
	for _, r := range rules() {
		m.stops.WithLabelValues(r.reason)
	}
	m.groups = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "identify_dead_letter_groups_total", Help: "Fingerprints of dead letters that are new to the fleet: see identify-worker dlq stats.",
	})
	m.deliver, m.ok = m.outcomes.WithLabelValues("delivered"), m.calls.WithLabelValues("2xx")
	m.latencyOf = map[bool]prometheus.Observer{false: m.latency.WithLabelValues(classLive), true: m.latency.WithLabelValues(classBackfill)}
	m.outcomes.WithLabelValues("dead")
	m.outcomes.WithLabelValues("superseded")
	for _, result := range []string{"4xx", "429", "5xx", "error"} {
		m.calls.WithLabelValues(result)
	}
	return m
}

// The classes of events, as labels.
const (
	classLive     = "live"
	classBackfill = "backfill"
)

// notMade counts a call that was prepared but not made.
func (m *metrics) notMade(reason string) { m.unmade.WithLabelValues(reason).Inc() }

// called counts an attempt, unless nothing was sent.
func (m *metrics) called(err error, d time.Duration) {
	if unmade(err) != "" {
		return
	}
	m.madeCalls.Add(1)
	m.duration.Observe(d.Seconds())
	if err == nil {
		m.ok.Inc()
		return
	}
	result := result(err)
	m.calls.WithLabelValues(result).Inc()
	m.failedCalls.Add(1)
	if f, ok := errors.AsType[*userpilot.Error](err); ok {
		text := f.Error()
		m.lastFailure.Store(&text)
	}
	if result == "4xx" {
		m.refusedCalls.Add(1)
	}
}

// delivered counts events that were delivered in one call. now is by the server's clock, as their
// publication is, and may be a round trip early.
func (m *metrics) delivered(ds []fleet.Delivery, now time.Time) {
	m.deliver.Add(float64(len(ds)))
	m.deliveredEvents.Add(uint64(len(ds)))
	if merged := len(ds) - 1; merged > 0 {
		m.coalesced.Add(float64(merged))
		m.mergedEvents.Add(uint64(merged))
	}
	for _, d := range ds {
		m.latencyOf[d.Backfill].Observe(max(0, now.Sub(d.Published).Seconds()))
	}
	m.left(ds)
}

// left counts the backfill among events that leave the stream.
func (m *metrics) left(ds []fleet.Delivery) {
	for _, d := range ds {
		if d.Backfill {
			m.backfillEvents.Add(1)
		}
	}
}

func (m *metrics) died(d fleet.Delivery, first bool) {
	m.left([]fleet.Delivery{d})
	if first {
		m.groups.Inc()
	}
	m.outcomes.WithLabelValues("dead").Inc()
	m.deadEvents.Add(1)
}

// superseded counts events that needed no call; n of them are no copies of others.
func (m *metrics) superseded(ds []fleet.Delivery, n int) {
	m.left(ds)
	m.supersededEvents.Add(uint64(len(ds)))
	m.outcomes.WithLabelValues("superseded").Add(float64(n))
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.outcomes, m.calls, m.duration, m.latency, m.coalesced, m.groups, m.archiveFailures, m.unmade, m.stops}
}

// gauges describes the metrics whose values Collect reads on each scrape.
type gauges struct {
	backlog, oldest, bytes, used, deadLetters, oldestDead, hold, failing, stalled, pause, partitions, held, givenUp, giveUps, waiting, lost, limit, load, replicas, wanted *prometheus.Desc
}

func newGauges() gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("identify_"+name, help, labels, nil)
	}
	return gauges{
		backlog:     desc("backlog_events", "Events in the stream, read a few seconds ago, by class: live, or backfill, which takes the calls that live events leave.", "class"),
		oldest:      desc("backlog_oldest_seconds", "Age of the oldest event in the stream, read a few seconds ago, by class; 0 if none waits.", "class"),
		bytes:       desc("stream_bytes", "Bytes that a stream of the pipeline holds.", "stream"),
		used:        desc("stream_used_ratio", "Share of its limits that a stream of the pipeline uses, of the limit that is nearer; 0 without a limit. A full work stream refuses publishers.", "stream"),
		deadLetters: desc("dead_letters", "Dead letters in the dead-letter stream."),
		oldestDead:  desc("dead_letters_oldest_seconds", "Age of the oldest dead letter; absent if there is none."),
		hold:        desc("hold", "1 while this replica makes no calls, by reason.", "reason"),
		failing:     desc("failing_users", "Users of this replica whose calls keep failing while calls are allowed. Their events wait, the others continue."),
		stalled:     desc("stalled", "1 while this replica makes no calls although it has work and calls are allowed, by what most of its users wait for.", "reason"),
		pause:       desc("pause_seconds", "Remaining time of the cooldown that Userpilot asked for (429)."),
		partitions:  desc("partitions", "Partitions of the pipeline, including the partition of plain events."),
		held:        desc("partitions_held", "Partitions that this replica owns."),
		givenUp:     desc("partitions_given_up", "Partitions whose claims this replica loses repeatedly, by cause. It re-claims them at growing intervals.", "reason"),
		giveUps:     desc("claims_given_up_total", "Claims that this replica has lost, by cause. One claim may cover all partitions.", "reason"),
		waiting:     desc("rate_waiting", "Lanes of this replica that are ready and wait for a token."),
		lost:        desc("rate_slots_lost_total", "Rate slots that this replica had reserved and could not use in time."),
		limit:       desc("rate_limit", "Calls per second that the whole fleet may make: the lowest rate if the replicas' rates differ, their sum if each replica has its own; 0 without a limit."),
		load:        desc("load", "Share of this replica's capacity that its calls took in the last minute, 0 to 1. Time spent waiting for the limit, a hold or work does not count."),
		replicas:    desc("replicas", "Replicas that are alive, as seen by this one."),
		wanted:      desc("replicas_wanted", "Replicas that the fleet's work would keep comfortably busy: the number to scale to. A backlog caused only by the limit does not raise it."),
	}
}

// Describe implements [prometheus.Collector].
func (w *Worker) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range w.metrics.collectors() {
		c.Describe(ch)
	}
	g := w.gauges
	for _, d := range []*prometheus.Desc{g.backlog, g.oldest, g.bytes, g.used, g.deadLetters, g.oldestDead, g.hold, g.failing, g.stalled, g.pause, g.partitions, g.held, g.givenUp, g.giveUps, g.waiting, g.lost, g.limit, g.load, g.replicas, g.wanted} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]. It changes nothing and does not block on NATS: the
// streams' state is a few seconds old.
func (w *Worker) Collect(ch chan<- prometheus.Metric) {
	for _, c := range w.metrics.collectors() {
		c.Collect(ch)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := w.Snapshot()
	gauge(w.gauges.pause, s.Quiet.Seconds())
	gauge(w.gauges.partitions, float64(w.queue.Topology().Partitions+1))
	gauge(w.gauges.held, float64(s.Partitions))
	gauge(w.gauges.waiting, float64(s.Ready))
	gauge(w.gauges.limit, w.limit())
	ch <- prometheus.MustNewConstMetric(w.gauges.lost, prometheus.CounterValue, float64(w.limiter.Lost()))
	gauge(w.gauges.load, w.recent().load(w.config.Concurrency))
	giveUps := w.fleet.GiveUps()
	for _, g := range w.fleet.GivenUp() {
		gauge(w.gauges.givenUp, float64(len(g.Partitions)), string(g.Cause))
	}
	for _, cause := range fleet.Causes() {
		ch <- prometheus.MustNewConstMetric(w.gauges.giveUps, prometheus.CounterValue, float64(giveUps[cause]), string(cause))
	}
	if replicas := w.fleet.Replicas(); len(replicas) > 0 {
		gauge(w.gauges.replicas, float64(len(replicas)))
		gauge(w.gauges.wanted, float64(wanted(replicas, w.queue.Topology().Partitions+1)))
	}
	if s.Hold != "" {
		gauge(w.gauges.hold, 1, s.Hold)
	}
	if !s.OutageSince.IsZero() {
		gauge(w.gauges.hold, 1, outage)
	}
	gauge(w.gauges.failing, float64(s.Failing))
	if s.Stall != "" {
		gauge(w.gauges.stalled, 1, s.Stall)
	}
	if counts := w.counts.Load(); counts != nil {
		w.collectStreams(counts, gauge)
	}
}

// collectStreams reports the streams' state. Of a missing stream it reports nothing: no data is not an
// empty stream.
func (w *Worker) collectStreams(counts *queue.Counts, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	usage := func(stream string, u queue.Usage) {
		gauge(w.gauges.bytes, float64(u.Bytes), stream)
		gauge(w.gauges.used, u.Share(), stream)
	}
	if t := w.queue.Topology(); !slices.Contains(counts.Missing, t.StreamName()) {
		ages := agesOf(counts)
		gauge(w.gauges.backlog, float64(counts.Live.Events), classLive)
		gauge(w.gauges.backlog, float64(counts.Backfill.Events), classBackfill)
		gauge(w.gauges.oldest, ages.live.Seconds(), classLive)
		gauge(w.gauges.oldest, ages.backfill.Seconds(), classBackfill)
		usage("work", counts.Work)
	}
	if t := w.queue.Topology(); !slices.Contains(counts.Missing, t.DeadStreamName()) {
		gauge(w.gauges.deadLetters, float64(counts.DeadLetters))
		usage("dead_letters", counts.Dead)
		if !counts.OldestDead.IsZero() {
			gauge(w.gauges.oldestDead, counts.At.Sub(counts.OldestDead).Seconds())
		}
	}
}

// ages are those of the oldest live event and of the oldest backfill; 0 if there is none.
type ages struct{ live, backfill time.Duration }

// agesOf takes the ages at the time of the reading: by now the events may be gone. counts may be
// nil.
func agesOf(counts *queue.Counts) (a ages) {
	if counts != nil && !counts.Live.Oldest.IsZero() {
		a.live = max(0, counts.At.Sub(counts.Live.Oldest))
	}
	if counts != nil && !counts.Backfill.Oldest.IsZero() {
		a.backfill = max(0, counts.At.Sub(counts.Backfill.Oldest))
	}
	return a
}

// limit returns how many calls per second the whole fleet may make.
func (w *Worker) limit() float64 {
	replicas := w.fleet.Replicas()
	if len(replicas) == 0 {
		replicas = []fleet.Replica{{Rate: w.config.Member.Rate, OwnRate: w.config.Member.OwnRate}}
	}
	perMinute := fleet.LowestRate(replicas).PerMinute()
	for _, r := range replicas {
		perMinute += r.OwnRate.PerMinute()
	}
	return perMinute / 60
}
