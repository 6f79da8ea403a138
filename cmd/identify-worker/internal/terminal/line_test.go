package terminal

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func lineOf(out *strings.Builder, columns int) *Line {
	return &Line{out: out, width: func() int { return columns }}
}

func TestTheLineStaysBelowTheLog(t *testing.T) {
	t.Parallel()
	var screen strings.Builder
	line := lineOf(&screen, 80)
	logger := slog.New(slog.NewTextHandler(line, nil))
	logger.Info("before")
	line.Show("one")
	line.Show("one") // nothing new, nothing written
	logger.Info("between")
	line.Show("two")
	line.Show()

	var got []string
	for part := range strings.SplitSeq(screen.String(), clearLine) {
		_, part, _ = strings.Cut("msg="+part, "msg=")
		if _, after, found := strings.Cut(part, "msg="); found {
			part = after
		}
		got = append(got, strings.TrimSpace(strings.ReplaceAll(part, "\n", "/")))
	}
	if want := "before/|one|between/one|two|"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", strings.Join(got, "|"), want)
	}
}

// What is wrong comes first, and what has no room is left out whole.
func TestTheLineIsCut(t *testing.T) {
	t.Parallel()
	parts := []string{"", "ON HOLD: unauthorized", "waiting 5,000", "", "delivered 1,234"}
	for columns, want := range map[int]string{
		0: "", 1: "", 9: "",
		10:  "ON HOLD:…",
		20:  "ON HOLD: unauthori…",
		21:  "ON HOLD: unauthoriz…",
		22:  "ON HOLD: unauthorized",
		37:  "ON HOLD: unauthorized",
		38:  "ON HOLD: unauthorized · waiting 5,000",
		55:  "ON HOLD: unauthorized · waiting 5,000",
		56:  "ON HOLD: unauthorized · waiting 5,000 · delivered 1,234",
		200: "ON HOLD: unauthorized · waiting 5,000 · delivered 1,234",
	} {
		var screen strings.Builder
		lineOf(&screen, columns).Show(parts...)
		if got := strings.TrimPrefix(screen.String(), clearLine); got != want || columns > 0 && utf8.RuneCountInString(got) >= columns {
			t.Errorf("%d columns: %q, want %q", columns, got, want)
		}
	}
}

// Where nothing can be shown, a line only passes on what is written.
func TestNoTerminal(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	line := NewLine(&out, func(string) string { return "" })
	line.Show("x")
	stop := line.Follow(func() []string { return []string{"y"} })
	_, err := line.Write([]byte("log\n"))
	stop()
	if line.IsLive() || err != nil || out.String() != "log\n" || ClearScreen(&out, func(string) string { return "" }) != "" || Is(&out) {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	for want, got := range map[string][]string{
		"0 of 10 done|0%|":                            Progress("done", 0, 10, 0),
		"2,500 of 10,000 done|25%|1,250/s|6s left":    Progress("done", 2500, 10_000, 2*time.Second),
		"10 of 10 done|100%|10/s|0s left":             Progress("done", 10, 10, time.Second),
		"0 of 10 done|0%|0/s":                         Progress("done", 0, 10, time.Minute),
		"7 done|7/s":                                  Progress("done", 7, 0, time.Second),
		"7 done|":                                     Progress("done", 7, 6, 0),
		"1,000 of 1,000,000 done|0%|100/s|2h47m left": Progress("done", 1000, 1_000_000, 10*time.Second),
	} {
		if joined := strings.Join(got, "|"); joined != want {
			t.Errorf("got %s, want %s", joined, want)
		}
	}
	if !slices.Equal(Progress("done", 1, 2, 0), []string{"1 of 2 done", "50%", ""}) {
		t.Error("no speed is known at once")
	}
}
