package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// observed is what the HTTP listener shows.
type observed interface {
	prometheus.Collector
	Ready() error    // nil, or why it cannot deliver
	Warning() string // what else should be known
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
		return nil, fmt.Errorf("--listen: %w", err)
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

// show adds the worker to what is served. It is called once.
func (l *listener) show(o observed) {
	l.registry.MustRegister(o)
	l.worker.Store(&o)
}

func (l *listener) ready(w http.ResponseWriter, _ *http.Request) {
	o := l.worker.Load()
	if o == nil {
		http.Error(w, "waiting for NATS", http.StatusServiceUnavailable)
		return
	}
	if err := (*o).Ready(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, strings.TrimSpace("ok "+(*o).Warning()))
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
