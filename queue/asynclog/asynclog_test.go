package asynclog

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// gated blocks writes until its gate is open.
type gated struct {
	bytes.Buffer
	open chan struct{}
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.open
	return g.Buffer.Write(p)
}

// plain returns a handler that omits the time.
func plain(g *gated) slog.Handler {
	return slog.NewTextHandler(g, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
}

// Logging does not block while nothing can be written. Afterwards everything is written, in the order
// of the calls.
func TestOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &gated{open: make(chan struct{})}
		log := Wrap(slog.New(plain(g)))
		log.Info("one")
		log.With("a", 1).Info("two")
		log.WithGroup("g").Info("three", "b", 2)
		Wrap(log).Warn("four")
		log.Debug("not enabled")
		synctest.Wait()
		if g.Len() > 0 {
			t.Fatal("it is written, although it cannot be")
		}
		close(g.open)
		Flush(t.Context(), log)
		const want = "level=INFO msg=one\nlevel=INFO msg=two a=1\nlevel=INFO msg=three g.b=2\nlevel=WARN msg=four\n"
		if got := g.String(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

// Records beyond the capacity are dropped, and a line says how many.
func TestDrops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &gated{open: make(chan struct{})}
		log := Wrap(slog.New(plain(g)))
		log.Info("first")
		synctest.Wait() // it is being written
		const more = 7
		for i := range capacity + more {
			log.Info(fmt.Sprint(i))
		}
		close(g.open)
		Flush(t.Context(), log)
		log.Info("last")
		Flush(t.Context(), log)
		lines := strings.Split(strings.TrimSpace(g.String()), "\n")
		want := fmt.Sprintf(`level=WARN msg="log lines were dropped because the log output did not keep up" lines=%d`, more)
		if n := len(lines); n != capacity+3 || lines[n-2] != want || lines[n-1] != "level=INFO msg=last" {
			t.Errorf("%d lines, the last of them %q", n, lines[max(0, n-2):])
		}
	})
}

// A flush waits no longer than its context allows.
func TestFlushEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &gated{open: make(chan struct{})}
		defer close(g.open)
		log := Wrap(slog.New(plain(g)))
		Flush(t.Context(), log) // nothing was logged
		log.Info("one")
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if Flush(ctx, log); time.Since(begun) != time.Second {
			t.Errorf("it took %v", time.Since(begun))
		}
	})
}

func TestNoLogger(t *testing.T) {
	t.Parallel()
	Wrap(nil).Error("nobody reads this")
}
