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

// replica is a place in the fleet: one process after the other, and the network of its own
// through which each reaches NATS and the API.
type replica struct {
	number  int
	program string
	args    []string
	keyFile string
	trusted string // file of the API's certificate
	nats    *link.Proxy
	api     *link.Proxy
	judge   *judge
	echo    io.Writer // nil says nothing

	mu      sync.Mutex
	is      *process
	metrics string // URL of the process's metrics
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

// start runs a process in this place, unless one runs there already.
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
	go r.mourn(ctx, p)
	return nil
}

// mourn waits for a process's end and tells the judge if nobody had asked for it.
func (r *replica) mourn(ctx context.Context, p *process) {
	<-p.done
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.is == p {
		r.is, r.metrics = nil, ""
	}
	if !p.doomed.Load() && !p.leaving.Load() && ctx.Err() == nil {
		r.judge.violated(fmt.Sprintf("replica %d ended by itself: %v", r.number, p.err))
	}
}

// process is the one that runs here now, or nil.
func (r *replica) process() *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is
}

// kill is kill -9. It returns when the process is gone, and reports whether there was one.
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

// term is SIGTERM, after which a worker must end in order. It must have begun to work: a process
// that has not come to its main yet is ended by the system. And a second SIGTERM is meant to
// end it at once.
func (r *replica) term() bool {
	p := r.process()
	if p == nil || !r.working() || p.leaving.Swap(true) {
		return false
	}
	r.inspect()
	if err := p.term(20 * time.Second); err != nil {
		r.judge.violated(fmt.Sprintf("replica %d %v", r.number, err))
	}
	r.vacate(p)
	return true
}

// working reports whether the process has said so.
func (r *replica) working() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.metrics != ""
}

// vacate frees the place at once, before mourn comes to it.
func (r *replica) vacate(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.is == p {
		r.is, r.metrics = nil, ""
	}
}

// read takes in a line of a process's output: it must show nobody's data.
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
	for _, sign := range []string{"claims given up", "cannot work now"} {
		if bytes.Contains(line, []byte(sign)) {
			r.judge.faults.happened("the replica says: "+sign, r.number)
		}
	}
}

// inspect reads the metrics, which must show nobody's data either.
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
		return // it dies by our hand just now
	}
	page, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err == nil {
		r.judge.shown(r.number, "metrics", page)
	}
}

// giveKey writes the key's file, in the way of those who mount secrets.
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
