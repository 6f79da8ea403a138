package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
)

// replica is a place in the fleet: successive processes, and the network through which they reach
// NATS and the API.
type replica struct {
	number  int
	program string
	args    []string
	keyFile string
	trusted string // file with the API's certificate
	nats    *link.Proxy
	api     *link.Proxy
	judge   *judge
	echo    io.Writer // gets the processes' output; may be nil

	mu      sync.Mutex
	is      *process
	metrics string // URL of the running process's metrics
}

func newReplica(number int, s settings, p programs, dir, nats string, a *api, j *judge) (*replica, error) {
	r := &replica{number: number, program: p.worker, keyFile: filepath.Join(dir, fmt.Sprintf("key-%d", number)), trusted: a.trusted, judge: j}
	if s.verbose {
		r.echo = s.stderr
	}
	var err error
	if r.nats, err = link.Listen("127.0.0.1:0", nats); err != nil {
		return nil, err
	}
	address, err := a.listen()
	if err != nil {
		return nil, err
	}
	if r.api, err = link.Listen("127.0.0.1:0", address); err != nil {
		return nil, err
	}
	a.serve(address, number, r.api)
	r.place(s.away)
	r.args = []string{
		"work", "--nats-url", "nats://" + r.nats.Address(), "--endpoint", "https://" + r.api.Address(),
		"--api-key-file", r.keyFile, "--listen", "127.0.0.1:0",
		"--rate", s.rate.String(), "--burst", strconv.Itoa(s.burst), "--member-ttl", s.ttl.String(),
		"--max-attempts", strconv.Itoa(s.maxAttempts), "--concurrency", strconv.Itoa(s.concurrency),
		"--timeout", patience.String(), "--backoff-initial", "100ms", "--backoff-max", "1s", "--memory", strconv.Itoa(s.memory),
	}
	if s.single {
		r.args = append(r.args, "--coalesce=false")
	}
	if s.own {
		r.args = append(r.args, "--rate-scope", "replica")
	}
	return r, nil
}

// start starts a process in this place, unless one is running.
func (r *replica) start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.is != nil {
		return nil
	}
	p, err := spawn(ctx, r.read, []string{"SSL_CERT_FILE=" + r.trusted}, r.program, r.args...)
	if err != nil {
		return err
	}
	r.is = p
	go r.awaitExit(ctx, p)
	return nil
}

// awaitExit waits for a process to exit and reports a violation if we did not ask for it.
func (r *replica) awaitExit(ctx context.Context, p *process) {
	<-p.done
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.is == p {
		r.is, r.metrics = nil, ""
	}
	if !p.killed.Load() && !p.ending.Load() && ctx.Err() == nil {
		r.judge.violated(fmt.Sprintf("replica %d ended by itself: %v", r.number, p.err))
	}
}

// process returns the process that runs here now, or nil.
func (r *replica) process() *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is
}

// kill kills the process with SIGKILL. It returns when the process is gone, and reports whether
// there was one.
func (r *replica) kill() bool {
	p := r.process()
	if p == nil {
		return false
	}
	_ = p.kill()
	<-p.done
	r.vacate(p)
	return true
}

// term sends SIGTERM, after which a worker must end in order. It does so only once the worker has
// begun to work: before its main runs, the system ends a process at once. It never sends a second
// SIGTERM, which ends a worker at once.
func (r *replica) term() bool {
	p := r.process()
	if p == nil || !r.working() || p.ending.Swap(true) {
		return false
	}
	r.inspect()
	if err := p.term(20 * time.Second); err != nil {
		r.judge.violated(fmt.Sprintf("replica %d: %v", r.number, err))
	}
	r.vacate(p)
	return true
}

// working reports whether the process has announced its metrics address.
func (r *replica) working() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.metrics != ""
}

// vacate frees the place at once, without waiting for awaitExit.
func (r *replica) vacate(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.is == p {
		r.is, r.metrics = nil, ""
	}
}

// read takes a line of a process's output, which must not show users' data.
func (r *replica) read(line []byte) {
	r.judge.shown(r.number, "output", line)
	if r.echo != nil {
		fmt.Fprintf(r.echo, "replica %d: %s\n", r.number, line)
	}
	if _, rest, ok := bytes.Cut(line, []byte("metrics=")); ok {
		url, _, _ := bytes.Cut(rest, []byte(" "))
		r.mu.Lock()
		r.metrics = string(url)
		r.mu.Unlock()
	}
	for _, sign := range []string{"lost ownership of partitions", "cannot work now"} {
		if bytes.Contains(line, []byte(sign)) {
			r.judge.faults.happened("the replica says: "+sign, r.number)
		}
	}
}

// inspect reads the metrics, which must not show users' data either.
func (r *replica) inspect() {
	r.mu.Lock()
	url := r.metrics
	r.mu.Unlock()
	if url == "" {
		return
	}
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return // we have just killed it
	}
	page, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err == nil {
		r.judge.shown(r.number, "metrics", page)
	}
}

// giveKey replaces the key's file as a mounted secret is replaced.
func (r *replica) giveKey(key string) error {
	next := r.keyFile + ".next"
	if err := os.WriteFile(next, []byte(key+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(next, r.keyFile)
}

// close ends the process and the network.
func (r *replica) close() {
	r.kill()
	r.nats.Close()
	r.api.Close()
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
