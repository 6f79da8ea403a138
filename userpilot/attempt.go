package userpilot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// IdentifyGuarded is [Client.Identify] with a last check: guard is asked immediately
// before the request's first byte is written, that is after the wait for a
// connection, and its error ends the attempt with nothing sent; the [Failure] wraps
// it. It is asked more than once: before the wait too, as a refusal then costs no
// connection, and again if a stale connection made the transport take another. It may
// be called from another goroutine, must not block, and is not called any more once
// IdentifyGuarded has returned. A nil guard allows everything.
//
// A [ClientConfig.Transport] that does not call httptrace's WroteHeaders hook before
// it writes gets only the first check.
func (c *Client) IdentifyGuarded(ctx context.Context, body []byte, guard func() error) error {
	_, err := c.IdentifyAnswered(ctx, body, guard)
	return err
}

// IdentifyAnswered is [Client.IdentifyGuarded] for who wants to know which 2xx it was. The
// status is that of the answer, and 0 if there is none.
func (c *Client) IdentifyAnswered(ctx context.Context, body []byte, guard func() error) (status int, err error) {
	if len(body) == 0 {
		return 0, &Failure{Err: errEmptyBody}
	}
	if guard == nil {
		guard = func() error { return nil }
	}
	if err := guard(); err != nil {
		return 0, &Failure{Err: err}
	}
	key := c.key.Load()
	a := newAttempt(body, guard)
	resp, err := c.transport.RoundTrip(a.request(ctx, c.request, key.header))
	if err != nil {
		return 0, a.failure(ctx, err, c.traced)
	}
	if isSuccess(resp.StatusCode) {
		discard(resp)
		return resp.StatusCode, nil
	}
	return resp.StatusCode, refusal(resp, key.key)
}

var errEmptyBody = errors.New("body: is empty")

// attempt is one request. It learns through httptrace when the first byte is about to
// be written: the header is then in the connection's buffer, which holds all of it.
// A body with a Read of its own would be asked too late, as net/http flushes the
// header before it reads a body whose type it does not know (and pays a second write
// for it).
type attempt struct {
	body   []byte
	reader bytes.Reader
	trace  httptrace.ClientTrace
	guard  func() error
	stage  atomic.Int32
	denied atomic.Pointer[error] // what guard said, if not nil
}

// The stages of an attempt. Who moves it on from waiting decides whether anything is
// sent: the transport that is about to write, or the caller that gives up.
const (
	waiting int32 = iota
	writing
	over
)

func newAttempt(body []byte, guard func() error) *attempt {
	a := &attempt{body: body, guard: guard}
	a.reader.Reset(body)
	a.trace.WroteHeaders = a.beforeFirstByte
	return a
}

func (a *attempt) request(ctx context.Context, shared *http.Request, header http.Header) *http.Request {
	r := shared.WithContext(httptrace.WithClientTrace(ctx, &a.trace))
	r.Header = header
	r.Body = io.NopCloser(&a.reader)
	r.GetBody = a.rewind
	r.ContentLength = int64(len(a.body))
	return r
}

// beforeFirstByte asks the guard. A hook cannot refuse, but a body that is shorter
// than announced makes net/http drop the request before it flushes the header.
func (a *attempt) beforeFirstByte() {
	if a.stage.Load() == over {
		a.reader.Reset(nil)
		return
	}
	if err := a.guard(); err != nil {
		a.denied.Store(&err)
		a.reader.Reset(nil)
		return
	}
	if !a.stage.CompareAndSwap(waiting, writing) && a.stage.Load() == over {
		a.reader.Reset(nil)
	}
}

// rewind serves a transport that found its connection closed before anything was
// written. After a refusal it must not go through all its other connections.
func (a *attempt) rewind() (io.ReadCloser, error) {
	if err := a.denied.Load(); err != nil {
		return nil, *err
	}
	a.reader.Reset(a.body)
	return io.NopCloser(&a.reader), nil
}

// failure ends an attempt that has no answer. traced says whether the transport is
// known to ask before it writes.
func (a *attempt) failure(ctx context.Context, err error, traced bool) *Failure {
	silent := a.stage.CompareAndSwap(waiting, over)
	if denied := a.denied.Load(); denied != nil {
		return &Failure{Err: *denied, Sent: !silent}
	}
	sent := !(silent && traced || isDialError(err))
	return &Failure{Err: transportError(ctx, err, sent), Sent: sent}
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
