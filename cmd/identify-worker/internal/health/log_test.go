package health

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A problem is logged once when it has lasted, and once when it has been away for as long.
func TestLastingProblemsAreLogged(t *testing.T) {
	t.Parallel()
	full := Problem{Code: "stream_full", Text: "the work stream is full: 9 of 9", Users: "publishers are refused", Do: "let it drain"}
	short := Problem{Code: "silent", Text: "a replica is silent"}
	began := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	var said bytes.Buffer
	l := NewLog(slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	for _, step := range []struct {
		after    time.Duration
		problems []Problem
		want     string
	}{
		{0, []Problem{full, short}, ""},
		{10 * time.Second, []Problem{full}, ""},
		{20 * time.Second, []Problem{full, short}, ""}, // it was away, so its time begins again
		{30 * time.Second, []Problem{full, short}, `level=WARN msg="the pipeline has a problem" code=stream_full problem="the work stream is full: 9 of 9" why="" ` +
			`seen_since=2026-01-01T12:00:00.000Z users="publishers are refused" do="let it drain"`},
		{40 * time.Second, []Problem{full}, ""},
		{50 * time.Second, nil, ""},
		{60 * time.Second, []Problem{full}, ""}, // it comes and goes
		{80 * time.Second, nil, ""},
		{90 * time.Second, nil, `level=INFO msg="the pipeline's problem is over" code=stream_full seen_until=2026-01-01T12:01:00.000Z`},
		{100 * time.Second, nil, ""},
	} {
		said.Reset()
		l.Look(began.Add(step.after), step.problems)
		if got := strings.TrimSuffix(said.String(), "\n"); got != step.want {
			t.Errorf("after %v: %s, want %s", step.after, got, step.want)
		}
	}
}
