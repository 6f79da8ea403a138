package userpilottest

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"
)

// answer is an answer to a request, over a socket or without one.
type answer struct {
	cut    bool // close the connection instead of answering
	status int
	header http.Header
	body   []byte
	ending ending
	pause  time.Duration // of a trickle
}

// ending is how an answer's body ends.
type ending int

const (
	proper ending = iota
	cutShort
	endless
	trickling
)

func newAnswer(status int, body []byte) answer {
	return answer{
		status: status,
		header: http.Header{"Content-Type": {"application/json; charset=utf-8"}},
		body:   body,
	}
}

// refuse returns an answer with the documented error body.
func refuse(status int, code, message string) answer {
	type problem struct {
		Details string `json:"details"`
		Error   string `json:"error"`
		Code    string `json:"error_code"`
		Message string `json:"message"`
	}
	body, _ := json.Marshal(map[string][]problem{"errors": {{
		Details: message, Error: http.StatusText(status), Code: code, Message: message,
	}}})
	return newAnswer(status, body)
}

func (a answer) setRetryAfter(d time.Duration) {
	seconds := (d + time.Second - 1) / time.Second
	a.header.Set("Retry-After", strconv.Itoa(int(seconds)))
}

// length returns the Content-Length of the answer, -1 if the body never ends.
func (a answer) length() int64 {
	if a.ending == endless || a.ending == trickling {
		return -1
	}
	return int64(len(a.body))
}

// stream returns the body with its ending. Closing it ends a blocked Read.
func (a answer) stream(ctx context.Context) *stream {
	ctx, cancel := context.WithCancel(ctx)
	rest := a.body
	if a.ending == cutShort {
		rest = rest[:len(rest)/2]
	}
	return &stream{ctx: ctx, cancel: cancel, rest: rest, ending: a.ending, pause: a.pause}
}

// stream is an answer's body as the client reads it.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc
	rest   []byte
	ending ending
	pause  time.Duration
}

func (s *stream) Read(p []byte) (int, error) {
	if s.ending == trickling {
		p = p[:min(len(p), 1)]
		if err := sleep(s.ctx, s.pause); err != nil {
			return 0, err
		}
	}
	if err := context.Cause(s.ctx); err != nil {
		return 0, err
	}
	if len(s.rest) > 0 {
		n := copy(p, s.rest)
		s.rest = s.rest[n:]
		return n, nil
	}
	switch s.ending {
	case proper:
		return 0, io.EOF
	case cutShort:
		return 0, io.ErrUnexpectedEOF
	}
	for i := range p {
		p[i] = ' ' // JSON permits whitespace after its end
	}
	return len(p), nil
}

func (s *stream) Close() error {
	s.cancel()
	return nil
}

// sleep waits for d, or returns the cause if ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
