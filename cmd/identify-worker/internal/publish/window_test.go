package publish

import (
	"context"
	"testing"
	"time"
)

// atServer sends through the window to a server that stores so many events a second, in batches of all
// that wait, and answers after each batch, from a distance. It returns the window in the end, and the
// longest that an event took.
func atServer(t *testing.T, perSecond int, distance time.Duration, lasts time.Duration) (limit int64, longest time.Duration, stored int) {
	t.Helper()
	w := newWindow()
	for at := time.Duration(0); at < lasts; {
		waiting := w.limit.Load()
		for range waiting {
			if err := w.begin(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
		took := distance + time.Duration(waiting)*time.Second/time.Duration(perSecond)
		for range waiting {
			w.end(took)
		}
		at += took
		stored += int(waiting)
		longest = max(longest, took)
	}
	return w.limit.Load(), longest, stored
}

// The window is as large as is of use, near and far, and a slow server is not flooded.
func TestWindow(t *testing.T) {
	t.Parallel()
	const minute = time.Minute
	if limit, longest, _ := atServer(t, 1_000_000, time.Millisecond, time.Second); limit != maxWindow || longest > soon {
		t.Errorf("near: %d, %v", limit, longest)
	}
	limit, _, stored := atServer(t, 1_000_000, 250*time.Millisecond, 10*time.Second)
	if limit != maxWindow || stored < maxWindow*3*8 { // 61 thousand a second
		t.Errorf("far: %d, %d stored", limit, stored)
	}
	if limit, longest, stored := atServer(t, 300, time.Millisecond, minute); longest > 5*time.Second || limit > 600 || stored < 300*50 {
		t.Errorf("slow: %d, %v, %d stored", limit, longest, stored)
	}
	if limit, longest, _ := atServer(t, 4, time.Millisecond, minute); limit != leastWindow || longest > 20*time.Second {
		t.Errorf("very slow: %d, %v", limit, longest)
	}
}

// Who waits for room is woken by an answer, by a failure, and by the end of the context.
func TestWindowWaits(t *testing.T) {
	t.Parallel()
	w := newWindow()
	for range firstWindow {
		if err := w.begin(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	begun := make(chan error)
	go func() { begun <- w.begin(t.Context(), nil) }()
	w.end(late) // no larger
	if err := <-begun; err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.begin(ended, nil); err == nil {
		t.Error("it begins more than there is room for")
	}
	failed := make(chan struct{})
	close(failed)
	if err := w.begin(t.Context(), failed); err == nil {
		t.Error("it begins after a failure")
	}
}

// A slow round trip halves the window once, not for each event.
func TestWindowHalves(t *testing.T) {
	t.Parallel()
	w := newWindow()
	w.limit.Store(1024)
	for range 1024 {
		w.end(2 * late)
	}
	if got := w.limit.Load(); got != 512 {
		t.Errorf("the window has room for %d, want 512", got)
	}
}
