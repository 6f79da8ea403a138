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
	// Body is sent as it is. It must not be changed any more: a transport may still be
	// reading it when the answer is there.
	Body []byte
	// Begin is called once a connection is at hand. It may block, as for a token of a
	// limit; its error ends the attempt with nothing sent, and the connection is kept.
	// Nil begins at once.
	Begin func() error
	// Guard is asked when Begin has returned and, as the final word, immediately before
	// the request's first byte is written; its error ends the attempt with nothing sent.
	// Only a refusal at the first byte costs the connection. It may be called from
	// another goroutine and more than twice, must not block, and is not called any more
	// once [Client.Attempt] has returned. Nil allows everything.
	Guard func() error
	// Timeout bounds the wait for a connection and, counted anew when Begin has
	// returned, the time from then to the answer. 0 is no bound.
	Timeout time.Duration
	// Stop ends the wait for a connection when it is closed. Nil never is.
	Stop <-chan struct{}
}

// Attempt makes one attempt. First it waits for a connection, so that neither Begin's
// time nor what Begin may spend goes into making one: a connection that was kept, or one
// that is made. It blocks until there is an answer, or until ctx or the call's Timeout
// ends. status is the answer's, and 0 if there is none. A 2xx, Userpilot's "accepted", is
// no error. Everything else is a *[Failure].
//
// One attempt is one request that arrives, with one exception that HTTP has always had:
// if a kept connection turns out to be closed before anything was written, another one
// that is idle is taken, and Guard is asked again.
//
// A [ClientConfig.Transport] that is not an [http.Transport] makes its connections as it
// likes: Begin is then called at once, and if it does not call httptrace's WroteHeaders
// hook before it writes, Guard is asked only the first time.
func (c *Client) Attempt(ctx context.Context, call Call) (status int, err error) {
	if len(call.Body) == 0 {
		return 0, &Failure{Err: errEmptyBody}
	}
	if err := context.Cause(ctx); err != nil {
		return 0, &Failure{Err: err, Unconnected: true}
	}
	if c.pool == nil {
		return c.unpooled(ctx, &call)
	}
	if err := c.pool.reserve(ctx, &call); err != nil {
		return 0, &Failure{Err: err, Unconnected: true}
	}
	reserved := true
	defer func() { // Begin may panic, too
		if reserved {
			c.pool.cancel()
		}
	}()
	if err := call.begin(); err != nil {
		return 0, &Failure{Err: err}
	}
	ctx, stop := call.bound(ctx)
	defer stop()
	if err := call.allowed(ctx); err != nil {
		return 0, &Failure{Err: err}
	}
	reserved = false
	return c.exchange(ctx, &call, c.pool.take())
}

// exchange sends the call on conn, or on another one if that has ended unnoticed.
func (c *Client) exchange(ctx context.Context, call *Call, conn *conn) (status int, err error) {
	key := c.key.Load()
	failure := &Failure{Err: errEnded}
	for conn != nil {
		a := newAttempt(ctx, call)
		resp, err := conn.RoundTrip(a.request(c.request, key.header))
		if err == nil {
			status, err := answered(resp, key.key)
			c.pool.release(conn)
			return status, err
		}
		c.pool.release(conn)
		stale := a.stale(err)
		failure = a.failure(err, true)
		if !stale {
			break
		}
		failure.Sent = false
		conn = c.pool.spare()
	}
	return 0, failure
}

// unpooled is an attempt with a transport that has connections of its own.
func (c *Client) unpooled(ctx context.Context, call *Call) (status int, err error) {
	if err := call.begin(); err != nil {
		return 0, &Failure{Err: err}
	}
	ctx, stop := call.bound(ctx)
	defer stop()
	if err := call.allowed(ctx); err != nil {
		return 0, &Failure{Err: err}
	}
	key := c.key.Load()
	a := newAttempt(ctx, call)
	resp, err := c.transport.RoundTrip(a.request(c.request, key.header))
	if err != nil {
		return 0, a.failure(err, false)
	}
	return answered(resp, key.key)
}

func (c *Call) begin() error {
	if c.Begin == nil {
		return nil
	}
	return c.Begin()
}

// bound is the context of what comes after Begin.
func (c *Call) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.Timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.Timeout)
}

// allowed asks whether anything may be sent.
func (c *Call) allowed(ctx context.Context) error {
	if c.Guard != nil {
		if err := c.Guard(); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// answered reads an answer to its end.
func answered(resp *http.Response, key Key) (status int, err error) {
	if isSuccess(resp.StatusCode) {
		discard(resp)
		return resp.StatusCode, nil
	}
	return resp.StatusCode, refusal(resp, key)
}

var (
	errEmptyBody = errors.New("body: is empty")
	errEnded     = errors.New("the connection was closed before anything was sent")
)

// attempt is one request. It learns through httptrace when the first byte is about to
// be written: the header is then in the connection's buffer, which holds all of it.
// A body with a Read of its own would be asked too late, as net/http flushes the
// header before it reads a body whose type it does not know (and pays a second write
// for it).
type attempt struct {
	ctx    context.Context
	call   *Call
	reader bytes.Reader
	trace  httptrace.ClientTrace
	stage  atomic.Int32
	denied atomic.Pointer[error] // what the guard said, if not nil
}

// The stages of an attempt. Who moves it on from waiting decides whether anything is
// sent: the transport that is about to write, or the caller that gives up.
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

// beforeFirstByte asks the guard. A hook cannot refuse, but a body that is shorter
// than announced makes net/http drop the request before it flushes the header.
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

// rewind serves a transport that has connections of its own and found one closed before
// anything was written. After a refusal it must not go through all its other connections.
func (a *attempt) rewind() (io.ReadCloser, error) {
	if err := a.denied.Load(); err != nil {
		return nil, *err
	}
	a.reader.Reset(a.call.Body)
	return io.NopCloser(&a.reader), nil
}

// stale reports whether err is that of a connection that had ended before a byte was
// written to it.
func (a *attempt) stale(err error) bool {
	if a.ctx.Err() != nil || a.denied.Load() != nil {
		return false
	}
	return a.stage.Load() == waiting || isNothingWritten(err)
}

// isNothingWritten recognizes the error by which net/http's own pool knows that. Its type
// is not exported; under another name it would be taken for one that came after the first
// byte, which is the safe side.
func isNothingWritten(err error) bool {
	return fmt.Sprintf("%T", err) == "http.nothingWrittenError"
}

// failure ends an attempt that has no answer. traced says whether the transport is
// known to ask before it writes.
func (a *attempt) failure(err error, traced bool) *Failure {
	silent := a.stage.CompareAndSwap(waiting, over)
	if denied := a.denied.Load(); denied != nil {
		return &Failure{Err: *denied, Sent: !silent}
	}
	sent := !(silent && traced || isDialError(err))
	return &Failure{Err: transportError(a.ctx, err, sent), Sent: sent}
}

func isDialError(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// errBroken stands for whatever net/http says of an answer that it could not read:
// its texts quote the answer, and an answer may quote the user.
var errBroken = errors.New("the connection broke, or the answer is not HTTP/1.1")

// transportError makes an error fit for a log. What is said before a byte was sent
// cannot hold anything of ours.
func transportError(ctx context.Context, err error, sent bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !sent {
		return err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	for _, known := range []error{io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, known) {
			return known
		}
	}
	return errBroken
}
