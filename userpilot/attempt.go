package userpilot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// Call is one attempt to deliver a body.
type Call struct {
	// Body is sent unchanged. The caller must not change it afterwards: a transport may
	// still be reading it when the answer has arrived.
	Body []byte
	// Begin is called once there is a connection. It may block, for example for a token.
	// Its error ends the attempt with nothing sent, and the client keeps the connection.
	// Nil begins at once.
	Begin func() error
	// Guard is called after Begin has returned and again, as the final word, immediately
	// before the request's first byte is written. Its error ends the attempt with nothing
	// sent; only an error at the first byte costs the connection. Guard may be called from
	// another goroutine and more than twice, must not block, and is not called after
	// [Client.Attempt] has returned. Nil allows everything.
	Guard func() error
	// Timeout bounds the wait for a connection and then, starting again when Begin has
	// returned, the time until the answer. 0 is no bound.
	Timeout time.Duration
	// Stop ends the wait for a connection when it is closed. Nil is never closed.
	Stop <-chan struct{}
}

// Attempt makes one attempt. First it waits for a kept or a new connection, so that no
// time in Begin and nothing that Begin spends is wasted on making one. It blocks until
// there is an answer, or until ctx or the call's Timeout ends. status is the answer's
// status, or 0 if there is none. A 2xx, Userpilot's "accepted", is no error, unless its body
// is a web page. Every other result is a *[Error].
//
// One attempt sends at most one request, with one exception that HTTP has always had: if
// a kept connection turns out to be closed before anything was written, Attempt takes
// another idle one and calls Guard again.
//
// A [ClientConfig.Transport] that is not an [http.Transport] manages its own connections:
// Attempt then calls Begin at once, and if the transport does not call httptrace's
// WroteHeaders hook before it writes, Attempt calls Guard only the first time.
func (c *Client) Attempt(ctx context.Context, call Call) (status int, err error) {
	if len(call.Body) == 0 {
		return 0, &Error{Err: errEmptyBody}
	}
	if err := ended(ctx); err != nil {
		return 0, &Error{Err: err, Unconnected: true}
	}
	if c.pool == nil {
		return c.unpooled(ctx, &call)
	}
	if err := c.pool.reserve(ctx, &call); err != nil {
		return 0, &Error{Err: err, Unconnected: true}
	}
	reserved := true
	defer func() { // Begin may panic
		if reserved {
			c.pool.cancel()
		}
	}()
	if err := call.begin(); err != nil {
		return 0, &Error{Err: err}
	}
	ctx, stop := call.withTimeout(ctx)
	defer stop()
	if err := call.allowed(ctx); err != nil {
		return 0, &Error{Err: err}
	}
	reserved = false
	return c.exchange(ctx, &call, c.pool.take())
}

// exchange sends the call on conn, or on another idle connection if conn turns out to be closed.
func (c *Client) exchange(ctx context.Context, call *Call, conn *conn) (status int, err error) {
	key := c.key.Load()
	failure := &Error{Err: errEnded}
	for conn != nil {
		a := newAttempt(ctx, call)
		resp, err := conn.RoundTrip(a.request(c.request, key.header))
		if err == nil {
			status, err := c.readAnswer(resp, key.key)
			if status == http.StatusMisdirectedRequest {
				c.pool.closeMisdirected(conn)
			}
			c.pool.release(conn)
			return status, err
		}
		c.pool.release(conn)
		stale := a.stale(err)
		failure = c.failure(a, err, true)
		if !stale {
			break
		}
		failure.Sent = false
		conn = c.pool.spare()
	}
	return 0, failure
}

// unpooled makes an attempt with a transport that manages its own connections.
func (c *Client) unpooled(ctx context.Context, call *Call) (status int, err error) {
	if err := call.begin(); err != nil {
		return 0, &Error{Err: err}
	}
	ctx, stop := call.withTimeout(ctx)
	defer stop()
	if err := call.allowed(ctx); err != nil {
		return 0, &Error{Err: err}
	}
	key := c.key.Load()
	a := newAttempt(ctx, call)
	resp, err := c.transport.RoundTrip(a.request(c.request, key.header))
	if err != nil {
		return 0, c.failure(a, err, false)
	}
	return c.readAnswer(resp, key.key)
}

func (c *Call) begin() error {
	if c.Begin == nil {
		return nil
	}
	return c.Begin()
}

// withTimeout returns the context for everything after Begin.
func (c *Call) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.Timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, c.Timeout, late("no answer", c.Timeout))
}

// allowed returns why nothing may be sent, or nil.
func (c *Call) allowed(ctx context.Context) error {
	if c.Guard != nil {
		if err := c.Guard(); err != nil {
			return err
		}
	}
	return ended(ctx)
}

// readAnswer reads the answer, within bounds.
func (c *Client) readAnswer(resp *http.Response, key Key) (status int, err error) {
	switch {
	case isSuccess(resp.StatusCode):
		return resp.StatusCode, accepted(resp)
	case resp.StatusCode < 100: // net/http takes 000 for a status
		_ = resp.Body.Close()
		return 0, &Error{Err: &noAnswer{cause: CauseConnection, text: "the answer is not HTTP/1.1"}, Sent: true}
	}
	f := refusal(resp, key)
	switch {
	case f.Status != http.StatusProxyAuthRequired:
	case c.proxy.tunnels: // it comes from behind our proxy
		f.Err = proxyAsks("", false)
	default:
		f.Err = proxyAsks(c.proxy.address, c.proxy.withPassword)
	}
	return f.Status, f
}

var (
	errEmptyBody = errors.New("body: is empty")
	errEnded     = errors.New("the connection was closed before anything was sent")
)

// attempt is one request. Through httptrace it learns when the first byte is about to be
// written: at that point the whole header is in the connection's buffer. A body with its
// own Read method would be too late, because net/http flushes the header before it reads
// a body of an unknown type (and needs a second write for that).
type attempt struct {
	ctx    context.Context
	call   *Call
	reader bytes.Reader
	trace  httptrace.ClientTrace
	stage  atomic.Int32
	denied atomic.Pointer[error] // the error of the guard, or nil
}

// The stages of an attempt. Whoever moves it on from waiting decides whether anything is
// sent: the transport, which is about to write, or the caller, which gives up.
const (
	waiting int32 = iota
	writing
	over
)

func newAttempt(ctx context.Context, call *Call) *attempt {
	a := &attempt{ctx: ctx, call: call}
	a.reader.Reset(call.Body)
	a.trace.WroteHeaders = a.beforeFirstByte
	return a
}

func (a *attempt) request(shared *http.Request, header http.Header) *http.Request {
	r := shared.WithContext(httptrace.WithClientTrace(a.ctx, &a.trace))
	r.Header = header
	r.Body = io.NopCloser(&a.reader)
	r.GetBody = a.rewind
	r.ContentLength = int64(len(a.call.Body))
	return r
}

// beforeFirstByte calls the guard. A hook cannot stop a request, but a body that is
// shorter than its Content-Length makes net/http drop the request before it flushes the
// header.
func (a *attempt) beforeFirstByte() {
	if a.stage.Load() == over {
		a.reader.Reset(nil)
		return
	}
	if err := a.call.allowed(a.ctx); err != nil {
		a.denied.Store(&err)
		a.reader.Reset(nil)
		return
	}
	if !a.stage.CompareAndSwap(waiting, writing) && a.stage.Load() == over {
		a.reader.Reset(nil)
	}
}

// rewind is the GetBody of the request, for a transport that manages its own connections
// and found one closed before anything was written. After the guard has refused, rewind
// keeps the transport from trying all its other connections.
func (a *attempt) rewind() (io.ReadCloser, error) {
	if err := a.denied.Load(); err != nil {
		return nil, *err
	}
	a.reader.Reset(a.call.Body)
	return io.NopCloser(&a.reader), nil
}

// stale reports whether err means that the connection had ended before a byte was written
// to it.
func (a *attempt) stale(err error) bool {
	if a.ctx.Err() != nil || a.denied.Load() != nil {
		return false
	}
	return a.stage.Load() == waiting || isNothingWritten(err)
}

// isNothingWritten recognizes the error that net/http's own pool uses for that. Its type is
// not exported; if it is renamed, the error counts as one after the first byte, which is
// the safe side.
func isNothingWritten(err error) bool {
	return fmt.Sprintf("%T", err) == "http.nothingWrittenError"
}

// failure ends an attempt without an answer. traced reports whether the transport is known
// to call the hook before it writes.
func (c *Client) failure(a *attempt, err error, traced bool) *Error {
	silent := a.stage.CompareAndSwap(waiting, over)
	if denied := a.denied.Load(); denied != nil {
		return &Error{Err: *denied, Sent: !silent}
	}
	sent := !(silent && traced || isDialError(err))
	return &Error{Err: c.transportError(a.ctx, err, sent), Sent: sent}
}

func isDialError(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// transportError makes an error fit for a log. An error from before the first byte was sent cannot
// contain any of our data.
func (c *Client) transportError(ctx context.Context, err error, sent bool) error {
	switch {
	case ctx.Err() != nil:
		return ended(ctx)
	case sent:
		return explainAnswer(err)
	}
	return explainConnection(err, c.proxy.address)
}
