package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// serveAPI is the role of Userpilot. Its first two lines are its URL and its URL over TLS; it
// writes the certificate to the file -trusted. It is as cheap as net/http allows: it accepts every
// call, each after -latency. With -stand-in it is the product's stand-in, and with -order an
// [order]. With -delays it has [arrivals].
func serveAPI(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve-api", flag.ContinueOnError)
	standIn := flags.Bool("stand-in", false, "serve the stand-in API")
	fault := flags.String("fault", "", "fault of the stand-in")
	window := flags.Duration("window", time.Minute, "window in which the stand-in counts calls")
	watchOrder := flags.Bool("order", false, "watch the order of large events of each user")
	withDelays := flags.Bool("delays", false, "note the delays of live events")
	trusted := flags.String("trusted", "", "file to write the certificate to")
	latency := flags.Duration("latency", 0, "duration of each call, without the stand-in")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	tally := newTally()
	mux.HandleFunc("GET /accepted", tally.serve)
	identify := http.Handler(accept(*latency))
	if *standIn {
		api, err := newStandIn(*fault, *window)
		if err != nil {
			return err
		}
		identify = api
		mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { reply(w, api.Stats()) })
	}
	if *watchOrder {
		o := newOrder()
		identify = o
		mux.HandleFunc("GET /order", func(w http.ResponseWriter, _ *http.Request) { reply(w, o.seen()) })
	}
	if *withDelays {
		a := &arrivals{}
		identify = a.note(identify)
		mux.HandleFunc("GET /delays", a.serve)
	}
	mux.Handle("POST /v1/identify", tally.count(identify))
	return serveBoth(ctx, mux, l, *trusted)
}

// serveBoth serves on l, and over TLS on a port of its own, until ctx ends.
func serveBoth(ctx context.Context, h http.Handler, l net.Listener, trusted string) error {
	certificate, text, err := link.Certificate("127.0.0.1")
	if err != nil {
		return err
	}
	if err := os.WriteFile(trusted, text, 0o600); err != nil {
		return err
	}
	secure, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		return err
	}
	// Do not log clients that leave during the handshake.
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	fmt.Println("http://" + l.Addr().String())
	fmt.Println("https://" + secure.Addr().String())
	go func() { _ = server.Serve(secure) }()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// accept accepts any identify, after latency.
func accept(latency time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if latency > 0 && watch(r.Context(), latency) != nil {
			return // the caller has gone
		}
		w.WriteHeader(http.StatusAccepted)
	}
}

func newStandIn(fault string, window time.Duration) (*userpilottest.Server, error) {
	var rules userpilottest.Rules
	if fault != "" {
		rule, err := userpilottest.ParseFault(fault)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return userpilottest.New(userpilottest.Options{Faults: rules.Fault, Window: window}), nil
}

func reply(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

// tallied is the state of a [tally].
type tallied struct {
	Calls  int
	ByKey  map[string]int
	Latest string // the key of the latest call
}

// tally counts accepted calls and lets others wait for a number of them.
type tally struct {
	mu      sync.Mutex
	byKey   map[string]int
	calls   int
	latest  string
	waiting map[*waiter]bool
}

// waiter waits for a number of calls with a key; the empty key stands for all keys.
type waiter struct {
	key   string
	calls int
	met   chan struct{}
}

func newTally() *tally {
	return &tally{byKey: map[string]int{}, waiting: map[*waiter]bool{}}
}

// count passes calls to h and counts those that are accepted.
func (t *tally) count(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := &statusWriter{ResponseWriter: w}
		h.ServeHTTP(s, r)
		if s.status == http.StatusAccepted {
			t.add(strings.TrimPrefix(r.Header.Get("Authorization"), "Token "))
		}
	})
}

func (t *tally) add(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls++
	t.byKey[key]++
	t.latest = key
	for w := range t.waiting {
		t.meet(w)
	}
}

// meet releases a waiter whose number is reached. t.mu must be held.
func (t *tally) meet(w *waiter) {
	n := t.calls
	if w.key != "" {
		n = t.byKey[w.key]
	}
	if n >= w.calls {
		close(w.met)
		delete(t.waiting, w)
	}
}

// serve answers once the requested number of calls has been accepted.
func (t *tally) serve(w http.ResponseWriter, r *http.Request) {
	calls, err := strconv.Atoi(r.FormValue("calls"))
	if err != nil {
		http.Error(w, "calls: not a number", http.StatusBadRequest)
		return
	}
	waits := &waiter{key: r.FormValue("key"), calls: calls, met: make(chan struct{})}
	t.mu.Lock()
	t.waiting[waits] = true
	t.meet(waits)
	t.mu.Unlock()
	select {
	case <-waits.met:
	case <-r.Context().Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, waits)
	reply(w, tallied{Calls: t.calls, ByKey: maps.Clone(t.byKey), Latest: t.latest})
}

// statusWriter records the status.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for [http.ResponseController].
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
