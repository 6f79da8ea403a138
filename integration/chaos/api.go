package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
	"github.com/identify-worker/identify-worker/integration/oracle"
)

// keyPrefix begins every API key. No output may show it.
const keyPrefix = "chaos-secret-"

// api plays Userpilot. Each replica reaches it at an address of its own, so that it knows who
// calls. When it receives a call it decides at once what it will answer and whether the call takes
// effect.
type api struct {
	judge   *judge
	http    *http.Server
	config  *tls.Config
	trusted string // file with the certificate
	serving sync.WaitGroup

	mu      sync.Mutex
	random  *rand.Rand
	key     string
	fault   apiFault
	unlucky map[string]int    // failures in a row of each user, while not all calls fail
	callers map[string]caller // by the address that they call
}

// caller is the replica that calls at an address, and its link.
type caller struct {
	replica int
	link    *link.Proxy
}

// apiFault is one way for the API to fail.
type apiFault struct {
	name       string
	share      int // one call in this many; 0 and 1 mean all
	status     int
	retryAfter int // seconds
	cut        bool
	cutAfter   bool // the answer is cut off after the call took effect
	delay      time.Duration
	page       bool // a proxy answers with a web page, and the call does not reach the API
}

// apiFaults lists all ways to fail.
func apiFaults() []apiFault {
	return []apiFault{
		{name: "the API is down (503)", status: 503},
		{name: "the API fails every third call (500)", status: 500, share: 3},
		{name: "429 without Retry-After", status: 429, share: 4},
		{name: "429 with Retry-After", status: 429, retryAfter: 1, share: 4},
		{name: "calls are cut off before they take effect", cut: true, share: 2},
		{name: "answers are cut off", cutAfter: true, share: 2},
		{name: "slow answers", delay: 300 * time.Millisecond},
		{name: "a firewall refuses all calls (403)", status: 403, page: true},
		{name: "a proxy does not find some calls' host (404)", status: 404, page: true, share: 3},
		{name: "a portal answers all calls with a web page (200)", status: 200, page: true},
		{name: "some answers take too long", delay: 3 * time.Second, share: 5},
	}
}

// newAPI writes its certificate into dir: calls are made over TLS, as to Userpilot, so that a
// replica waits for its connections as long as it would in production.
func newAPI(j *judge, random *rand.Rand, dir string) (*api, error) {
	certificate, trusted, err := link.Certificate("127.0.0.1")
	if err != nil {
		return nil, err
	}
	a := &api{
		judge: j, random: random, key: newKey(random), unlucky: map[string]int{}, callers: map[string]caller{},
		config: &tls.Config{Certificates: []tls.Certificate{certificate}}, trusted: filepath.Join(dir, "trusted.pem"),
	}
	// The server would log connections cut off during the handshake to our standard error.
	a.http = &http.Server{Handler: a, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	return a, os.WriteFile(a.trusted, trusted, 0o600)
}

func newKey(random *rand.Rand) string { return fmt.Sprintf("%s%016x", keyPrefix, random.Uint64()) }

// listen opens an address for one replica.
func (a *api) listen() (address string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen for a replica: %w", err)
	}
	a.serving.Go(func() { _ = a.http.Serve(tls.NewListener(l, a.config)) })
	return l.Addr().String(), nil
}

// serve registers the replica that calls at an address.
func (a *api) serve(address string, replica int, over *link.Proxy) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.callers[address] = caller{replica, over}
}

func (a *api) close() {
	_ = a.http.Close()
	a.serving.Wait()
}

// rotate replaces the valid key and returns the new one.
func (a *api) rotate() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.key = newKey(a.random)
	return a.key
}

// set makes the API fail; the zero fault makes it work.
func (a *api) set(f apiFault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = f
	clear(a.unlucky)
}

// ServeHTTP answers a call.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // it was never received
	}
	x, err := oracle.Parse(body)
	if err != nil {
		a.judge.violated(fmt.Sprintf("a call's body: %v: %.300q", err, body))
		return
	}
	c, f := a.receive(r, x)
	if err := sleep(r.Context(), f.delay); err != nil || c.Status == 0 {
		a.judge.answered(c, true)
		panic(http.ErrAbortHandler)
	}
	if c.Status == http.StatusTooManyRequests {
		a.judge.cooldown(time.Duration(max(1, f.retryAfter)) * time.Second)
	}
	if f.retryAfter > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(f.retryAfter))
	}
	said := ""
	switch {
	case f.page:
		said = "<!DOCTYPE html><html><body>no</body></html>"
	case c.Status >= 400:
		said = `{"errors":[{"details":"no","error":"no","error_code":"chaos","message":"no"}]}`
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(said)))
	w.WriteHeader(c.Status)
	_, _ = io.WriteString(w, said)
	a.judge.answered(c, http.NewResponseController(w).Flush() != nil)
}

// receive decides the outcome of a call and has it judged, at one instant.
func (a *api) receive(r *http.Request, x oracle.Identify) (*call, apiFault) {
	address, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	a.mu.Lock()
	defer a.mu.Unlock()
	by := a.callers[address.String()]
	c := &call{Call: oracle.Call{Identify: x}, replica: by.replica, transit: by.link.Transit(r.RemoteAddr)}
	_, bad := x.Metadata["bad"]
	var f apiFault
	switch key, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Token "); {
	case key != a.key:
		c.Status = http.StatusUnauthorized
	case a.strikes(x.User):
		f = a.fault
		c.Status = f.status
		c.Applied = f.cutAfter && !bad
		if f.delay > 0 { // slow, but otherwise correct
			c.Status = outcome(bad)
			c.Applied = !bad
		}
	default:
		c.Status, c.Applied = outcome(bad), !bad
	}
	if a.judge.receive(c) {
		return c, apiFault{}
	}
	return c, f
}

func outcome(bad bool) int {
	if bad {
		return http.StatusUnprocessableEntity
	}
	return http.StatusAccepted
}

// maxUnlucky is how often in a row one user may be hit while others are not: an event that fails
// again and again while others' calls succeed becomes a dead letter, rightly.
const maxUnlucky = 3

// strikes reports whether the fault hits this call. a.mu must be held.
func (a *api) strikes(user string) bool {
	if a.fault.name == "" {
		return false
	}
	if a.fault.share <= 1 {
		return true
	}
	if a.random.IntN(a.fault.share) > 0 || a.unlucky[user] >= maxUnlucky {
		delete(a.unlucky, user)
		return false
	}
	a.unlucky[user]++
	return true
}

var errGone = errors.New("the client has gone")

// sleep waits for d, or until the client has gone.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	pause(ctx, d)
	if ctx.Err() != nil {
		return errGone
	}
	return nil
}
