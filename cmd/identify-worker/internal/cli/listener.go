package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/health"
	"github.com/identify-worker/identify-worker/worker"
)

// observed is what the HTTP listener shows.
type observed interface {
	prometheus.Collector
	Ready() error      // nil, or why it cannot deliver
	View() worker.View // what it knows of the pipeline
}

// listener serves /metrics, /livez and /readyz. It also does so while the worker waits for NATS,
// so that nothing restarts a worker because it does not answer.
type listener struct {
	socket   net.Listener
	server   *http.Server
	registry *prometheus.Registry
	worker   atomic.Pointer[observed] // nil until there is one
	serving  sync.WaitGroup
}

// listen serves until close. It fails if the address is in use, before any work begins.
func listen(address, version string, log *slog.Logger) (*listener, error) {
	socket, err := net.Listen("tcp", address)
	if err != nil {
		return nil, listenError(err)
	}
	l := &listener{socket: newBoundedListener(socket, maxConnections), registry: prometheus.NewRegistry()}
	l.registry.MustRegister(buildInfo(version), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector())
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(l.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", l.ready)
	l.server = newServer(mux)
	log.Debug("listening", "url", l.url())
	l.serving.Go(func() { _ = l.server.Serve(l.socket) })
	return l, nil
}

// listenError names the flag, and what to do about an address that is taken.
func listenError(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("--listen: %w (stop what listens there, or give another address; port 0 chooses a free one)", err)
	}
	return fmt.Errorf("--listen: %w", err)
}

// show adds the worker to what is served. It is called once.
func (l *listener) show(o observed) {
	l.registry.MustRegister(o, problems{o, prometheus.NewDesc("identify_problem",
		"1 while the pipeline has a problem of this kind, as this replica knows: what identify-worker status says.", []string{"code"}, nil)})
	l.worker.Store(&o)
}

func (l *listener) ready(w http.ResponseWriter, _ *http.Request) {
	o := l.worker.Load()
	if o == nil {
		http.Error(w, "waiting for NATS", http.StatusServiceUnavailable)
		return
	}
	var problems strings.Builder
	for _, p := range health.OfWorker((*o).View()) {
		fmt.Fprintf(&problems, "\n! %s: %s", p.Code, p)
	}
	if err := (*o).Ready(); err != nil {
		http.Error(w, err.Error()+problems.String(), http.StatusServiceUnavailable)
		return
	}
	state := "ok"
	if problems.Len() > 0 {
		state = "ready, but not all is well"
	}
	fmt.Fprintf(w, "%s%s\n", state, &problems)
}

// problems is the metric of a worker's problems.
type problems struct {
	worker observed
	desc   *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (p problems) Describe(ch chan<- *prometheus.Desc) { ch <- p.desc }

// Collect implements [prometheus.Collector].
func (p problems) Collect(ch chan<- prometheus.Metric) {
	is := map[string]float64{}
	for _, problem := range health.OfWorker(p.worker.View()) {
		is[problem.Code] = 1
	}
	for _, code := range health.Codes() {
		ch <- prometheus.MustNewConstMetric(p.desc, prometheus.GaugeValue, is[code], code)
	}
}

// url is where it listens, with the actual port.
func (l *listener) url() string { return "http://" + l.socket.Addr().String() }

// close lets running requests finish, for a second.
func (l *listener) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if l.server.Shutdown(ctx) != nil {
		_ = l.server.Close()
	}
	l.serving.Wait()
}
