package userpilottest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"syscall"
	"time"
)

// Transport returns a transport to the server without sockets. It waits only for timers
// and the request's context, so within a testing/synctest bubble it takes no real time.
// It is safe for concurrent use.
func (s *Server) Transport() http.RoundTripper { return transport{s} }

type transport struct{ server *Server }

// RoundTrip does what net/http does with a request: it calls the WroteHeaders hook of
// httptrace before it reads the body, sends nothing if the body does not have its
// Content-Length, and returns the context's cause when the context ends.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	inbound := r.WithContext(ctx)
	inbound.Body = io.NopCloser(bytes.NewReader(body))
	a := t.server.answer(inbound)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if a.cut {
		return nil, &net.OpError{Op: "read", Net: "memory", Err: syscall.ECONNRESET}
	}
	if a.header["Date"] == nil {
		a.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	return &http.Response{
		Status:        strconv.Itoa(a.status) + " " + http.StatusText(a.status),
		StatusCode:    a.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        a.header,
		Body:          a.stream(ctx),
		ContentLength: a.length(),
		Request:       r,
	}, nil
}

var errBodyLength = errors.New("the request's body is not as long as its Content-Length")

func readBody(r *http.Request) ([]byte, error) {
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.WroteHeaders != nil {
		trace.WroteHeaders()
	}
	if r.Body == nil {
		return nil, nil
	}
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.ContentLength >= 0 && int64(len(body)) != r.ContentLength {
		err = errBodyLength
	}
	return body, err
}
