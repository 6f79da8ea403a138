package tracing

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// roundTrips answers requests without a network.
type roundTrips func(*http.Request) (*http.Response, error)

func (f roundTrips) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, retryAfter string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {retryAfter}}, Body: http.NoBody}
}

// What can pass is tried again, until the SDK gives the batch up; what cannot is not.
func TestCollectorInsists(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answers      []int // 0 is none
		retryAfter   string
		lost         bool
		least, most  time.Duration
		lastTry, end bool
	}{
		"taken":               {answers: []int{200}},
		"after a while":       {answers: []int{503, 0, 502, 202}, least: 500 * time.Millisecond, most: 10 * time.Second},
		"when asked to":       {answers: []int{429, 200}, retryAfter: "7", least: 7 * time.Second, most: 8 * time.Second},
		"not for ever":        {answers: []int{503}, lost: true, least: 30 * time.Second, most: 30 * time.Second},
		"never":               {answers: []int{400}, lost: true},
		"a redirect":          {answers: []int{307}, lost: true},
		"once at the end":     {answers: []int{503}, lost: true, lastTry: true},
		"not beyond the end":  {answers: []int{0}, lost: true, end: true},
		"an endless patience": {answers: []int{429}, retryAfter: "86400", lost: true, least: 30 * time.Second, most: 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				c := testCollector(t, "http://collector:4318", &log)
				defer c.close()
				tries := 0
				c.client.Transport = roundTrips(func(_ *http.Request) (*http.Response, error) {
					status := test.answers[min(tries, len(test.answers)-1)]
					tries++
					if status == 0 {
						return nil, errors.New("MARK")
					}
					return answer(status, test.retryAfter), nil
				})
				if test.lastTry {
					close(c.last)
				}
				if test.end {
					c.end()
				}
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				if err := c.UploadTraces(ctx, oneSpan()); err != nil {
					t.Errorf("the SDK would print %v", err)
				}
				took := time.Since(begun)
				if lost := strings.Contains(log.String(), "lost=1"); lost != test.lost || took < test.least || took > test.most || strings.Contains(log.String(), "MARK") {
					t.Errorf("took %v, logged %s", took, log.String())
				}
			})
		})
	}
}

// A collector that is away for an hour is worth a line now and then, and one when it is back.
func TestCollectorLogsNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := testCollector(t, "http://MARK-user:MARK-password@collector:4318", &log)
		c.header.Set("Authorization", "MARK")
		defer c.close()
		status := http.StatusBadRequest
		c.client.Transport = roundTrips(func(*http.Request) (*http.Response, error) { return answer(status, ""), nil })
		for range 60 {
			_ = c.UploadTraces(t.Context(), oneSpan())
			time.Sleep(time.Minute) // fake time
		}
		status = http.StatusOK
		for range 2 {
			_ = c.UploadTraces(t.Context(), oneSpan())
		}
		text := log.String()
		if strings.Count(text, "cannot send traces") != 6 || strings.Count(text, "sending traces again") != 1 || !strings.Contains(text, "lost=60") || strings.Contains(text, "MARK") {
			t.Error(text)
		}
	})
}

// A collector that takes requests and never answers keeps a worker from ending for 5 s, no longer, and
// nothing of it goes on after that.
func TestTracingEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		getenv := func(name string) string {
			return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}[name]
		}
		traces := Start(t.Context(), getenv, "v1", slog.New(slog.NewTextHandler(&log, nil)))
		asked := 0
		traces.collector.client.Transport = roundTrips(func(r *http.Request) (*http.Response, error) {
			asked++
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		begun := time.Now()
		for range 2000 { // as many as are kept, in four batches
			_, span := traces.Tracer().Start(t.Context(), "x")
			span.End()
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("spans are waited for: %v", took)
		}
		traces.Close()
		if took := time.Since(begun); took > flushPatience {
			t.Errorf("ended after %v", took)
		}
		synctest.Wait()
		if asked != 1 || !strings.Contains(log.String(), "it did not answer before shutdown") {
			t.Errorf("asked %d times\n%s", asked, log.String())
		}
	})
}
