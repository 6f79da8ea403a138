package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// observed is what the HTTP listener shows.
type observed interface {
	prometheus.Collector
	Ready() error   // nil, or why it cannot deliver
	Remark() string // what else should be known
}

// listener serves /metrics, /livez and /readyz.
type listener struct {
	socket net.Listener
	server *http.Server
}

// listen takes the address at once, so that one in use is said before any work begins.
func listen(address string, o observed) (*listener, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(o, buildInfo(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector())
	socket, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, strings.TrimSpace("ok "+o.Remark()))
	})
	return &listener{socket: newBoundedListener(socket, maxConnections), server: newServer(mux)}, nil
}

// url is where it listens, with the port that was really taken.
func (l *listener) url() string { return "http://" + l.socket.Addr().String() }

// serve blocks until close.
func (l *listener) serve() { _ = l.server.Serve(l.socket) }

// close lets running requests end, for a second.
func (l *listener) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if l.server.Shutdown(ctx) != nil {
		_ = l.server.Close()
	}
}
