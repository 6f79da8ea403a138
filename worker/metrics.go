package worker

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/identify-worker/identify-worker/queue/fleet"
)

// metrics holds the worker's counters and histograms. No label ever carries a user.
type metrics struct {
	outcomes        *prometheus.CounterVec
	deliver         prometheus.Counter
	calls           *prometheus.CounterVec
	ok              prometheus.Counter
	duration        prometheus.Histogram
	latency         prometheus.Histogram
	coalesced       prometheus.Counter
	groups          prometheus.Counter
	archiveFailures prometheus.Counter
	unmade          *prometheus.CounterVec

	// The same counts for Snapshot: client_golang has no cheap way to read its counters.
	deliveredEvents, mergedEvents, deadEvents, madeCalls atomic.Uint64
}

func newMetrics() *metrics {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "identify_events_total", Help: "Events by outcome: delivered at the 2xx, dead when the dead letter is stored, superseded if newer events had set everything that a late event sets.",
		}, []string{"outcome"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "identify_calls_total", Help: "Attempts by result; error is an attempt without an answer.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "identify_call_duration_seconds", Help: "Time of one attempt.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "identify_delivery_latency_seconds", Help: "Time from an event's publication to its delivery.",
			Buckets: prometheus.ExponentialBuckets(0.005, 4, 12),
		}),
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
	m.groups = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "identify_dead_letter_groups_total", Help: "Fingerprints of dead letters that are new to the fleet: see identify-worker dlq stats.",
	})
	m.deliver, m.ok = m.outcomes.WithLabelValues("delivered"), m.calls.WithLabelValues("2xx")
	m.outcomes.WithLabelValues("dead")
	m.outcomes.WithLabelValues("superseded")
	for _, result := range []string{"4xx", "429", "5xx", "error"} {
		m.calls.WithLabelValues(result)
	}
	return m
}

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
	m.calls.WithLabelValues(result(err)).Inc()
}

func (m *metrics) delivered(ds []fleet.Delivery, now time.Time) {
	m.deliver.Add(float64(len(ds)))
	m.deliveredEvents.Add(uint64(len(ds)))
	if merged := len(ds) - 1; merged > 0 {
		m.coalesced.Add(float64(merged))
		m.mergedEvents.Add(uint64(merged))
	}
	for _, d := range ds {
		m.latency.Observe(now.Sub(d.Published).Seconds())
	}
}

func (m *metrics) died(first bool) {
	if first {
		m.groups.Inc()
	}
	m.outcomes.WithLabelValues("dead").Inc()
	m.deadEvents.Add(1)
}

func (m *metrics) superseded(n int) { m.outcomes.WithLabelValues("superseded").Add(float64(n)) }

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.outcomes, m.calls, m.duration, m.latency, m.coalesced, m.groups, m.archiveFailures, m.unmade}
}

// gauges describes the metrics whose values Collect reads on each scrape.
type gauges struct {
	backlog, oldest, deadLetters, oldestDead, hold, stalled, pause, partitions, held, givenUp, giveUps, waiting, lost, limit, load, replicas, wanted *prometheus.Desc
}

func newGauges() gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("identify_"+name, help, labels, nil)
	}
	return gauges{
		backlog:     desc("backlog_events", "Events in the stream, read a few seconds ago."),
		oldest:      desc("backlog_oldest_seconds", "Age of the oldest event in the stream."),
		deadLetters: desc("dead_letters", "Dead letters in the dead-letter stream."),
		oldestDead:  desc("dead_letters_oldest_seconds", "Age of the oldest dead letter; absent if there is none."),
		hold:        desc("hold", "1 while this replica makes no calls, by reason.", "reason"),
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
	for _, d := range []*prometheus.Desc{g.backlog, g.oldest, g.deadLetters, g.oldestDead, g.hold, g.stalled, g.pause, g.partitions, g.held, g.givenUp, g.giveUps, g.waiting, g.lost, g.limit, g.load, g.replicas, g.wanted} {
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
	if s.BreakerOpen {
		gauge(w.gauges.hold, 1, "outage")
	}
	if s.Stall != "" {
		gauge(w.gauges.stalled, 1, s.Stall)
	}
	if counts := w.counts.Load(); counts != nil {
		gauge(w.gauges.backlog, float64(counts.Backlog))
		gauge(w.gauges.deadLetters, float64(counts.DeadLetters))
		age := 0.0
		if !counts.Oldest.IsZero() {
			age = time.Since(counts.Oldest).Seconds()
		}
		gauge(w.gauges.oldest, age)
		if !counts.OldestDead.IsZero() {
			gauge(w.gauges.oldestDead, time.Since(counts.OldestDead).Seconds())
		}
	}
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

const (
	// countsInterval is how often the worker reads the streams' state.
	countsInterval = 5 * time.Second
	// countsLife is how long the metrics show the last state while reads fail. Afterwards they show
	// none: an old backlog must not look like one that does not move.
	countsLife = 30 * time.Second
)

// watchStreams reads the streams' state for the metrics. It blocks until ctx ends.
func (w *Worker) watchStreams(ctx context.Context) {
	tick := time.NewTicker(countsInterval)
	defer tick.Stop()
	var read time.Time
	for {
		counts, err := w.queue.Counts(ctx)
		switch {
		case err == nil:
			w.counts.Store(&counts)
			read = time.Now()
		case time.Since(read) >= countsLife:
			w.counts.Store(nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
