package userpilottest

import (
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	apiVersion   = "2020-09-22"
	maxBodyBytes = 1 << 20
)

// answer handles a request to the API. The caller need not close the request's body.
func (s *Server) answer(r *http.Request) answer {
	a := s.route(r)
	if !a.cut && a.header["X-Request-Id"] == nil {
		a.header.Set("X-Request-Id", "stand-in-"+strconv.FormatInt(s.requests.Add(1), 10))
	}
	return a
}

func (s *Server) route(r *http.Request) answer {
	var method string
	var handle func(*http.Request) answer
	switch r.URL.Path {
	case "/v1/identify":
		method, handle = http.MethodPost, s.identify
	case "/v1/validate":
		method, handle = http.MethodGet, s.validate
	default:
		return refuse(http.StatusNotFound, "not_found", "there is no such path")
	}
	if r.Method != method {
		a := refuse(http.StatusMethodNotAllowed, "method_not_allowed", "the method must be "+method)
		a.header.Set("Allow", method)
		return a
	}
	return handle(r)
}

// validate handles the check of a key.
func (s *Server) validate(r *http.Request) answer {
	if _, ok := s.keyOf(r); !ok {
		return wrongKey()
	}
	return newAnswer(http.StatusOK, []byte("{}"))
}

// keyOf returns the key of a request and whether it is accepted. An app token, which
// begins with NX-, is documented not to be accepted.
func (s *Server) keyOf(r *http.Request) (string, bool) {
	key, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Token ")
	if !ok || key == "" || strings.HasPrefix(key, "NX-") {
		return "", false
	}
	return key, s.options.Key == "" || key == s.options.Key
}

func wrongKey() answer {
	return refuse(http.StatusUnauthorized, "unauthorized", "the API key is not valid")
}

// identify handles one identify and records it.
func (s *Server) identify(r *http.Request) answer {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBodyBytes+1))
	if err != nil {
		return answer{cut: true}
	}
	parsed, bad := parseIdentify(body)
	call := Call{Request: Request{Time: time.Now(), User: parsed.user, Body: body}}
	key, ok := s.keyOf(r)
	if !ok {
		return s.finish(call, wrongKey(), nil)
	}
	fault, over := s.admit(key, &call.Request)
	if sleep(r.Context(), s.options.Latency+fault.Delay) != nil || fault.Cut {
		return s.finish(call, answer{cut: true}, nil)
	}
	if wrong := checkEnvelope(r.Header, body); wrong != nil {
		bad = wrong
	}
	switch {
	case fault.refuses():
		return s.finish(call, fault.alter(fault.refusal()), nil)
	case over:
		return s.finish(call, s.overLimit(), nil)
	case bad != nil:
		return s.finish(call, refuse(bad.status, bad.code, bad.message), nil)
	case fault.CutAfterApply:
		return s.finish(call, answer{cut: true}, &parsed)
	}
	return s.finish(call, fault.alter(newAnswer(http.StatusAccepted, nil)), &parsed)
}

// admit numbers a call, counts it towards the limit and chooses its fault.
func (s *Server) admit(key string, q *Request) (f Fault, over bool) {
	s.mu.Lock()
	s.number++
	q.Number = s.number
	w := s.windows[key]
	if w == nil {
		w = &Window{Length: s.options.Window}
		s.windows[key] = w
	}
	inWindow := w.Add(q.Time)
	faults := s.faults
	s.mu.Unlock()

	if faults != nil {
		f = faults(*q) // unlocked, because it may call the server's methods
	}
	return f, s.options.Limit > 0 && inWindow > s.options.Limit
}

// checkEnvelope checks the headers and the size of a request.
func checkEnvelope(h http.Header, body []byte) *refusal {
	contentType, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	switch {
	case len(body) > maxBodyBytes:
		return &refusal{http.StatusRequestEntityTooLarge, "too_large", "the body is larger than 1 MiB"}
	case contentType != "application/json":
		return &refusal{http.StatusUnsupportedMediaType, "unsupported_media_type", "Content-Type must be application/json"}
	case h.Get("X-API-Version") != apiVersion:
		return badRequest("missing_api_version", "X-API-Version must be "+apiVersion)
	}
	return nil
}

func (s *Server) overLimit() answer {
	a := refuse(http.StatusTooManyRequests, "rate_limited", "the rate limit is exceeded")
	if s.options.RetryAfter > 0 {
		a.setRetryAfter(s.options.RetryAfter)
	}
	return a
}

// finish applies a call, if apply is not nil, and counts it. It does both under one lock,
// so that Calls are in the order in which the profiles changed.
func (s *Server) finish(call Call, a answer, apply *identify) answer {
	call.Status, call.Applied = a.status, apply != nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if apply != nil {
		s.store.apply(*apply)
		s.stats.Applied++
	}
	s.stats.Calls++
	s.stats.ByStatus[call.Status]++
	if s.stats.First.IsZero() {
		s.stats.First = call.Time
	}
	s.stats.Last = call.Time
	if s.options.KeepCalls {
		s.calls = append(s.calls, call)
	}
	return a
}
