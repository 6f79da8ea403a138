package terminal

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

const (
	clearLine = "\r\x1b[K"

	// leastWidth is the width below which a line would say nothing.
	leastWidth = 10
	// Interval is the time between two states of a live line.
	Interval = 250 * time.Millisecond
)

// Line is the last row of a terminal, which changes in place below all that is written through it. Where
// there is no such terminal it shows nothing, and only passes on what is written. It is safe for
// concurrent use.
type Line struct {
	mu    sync.Mutex
	out   io.Writer
	width func() int // nil: nothing is shown
	shown string
}

// NewLine returns the line of an output.
func NewLine(out io.Writer, getenv func(string) string) *Line {
	l := &Line{out: out}
	if width(out) > 0 && !isDumb(getenv) {
		l.width = func() int { return width(out) } // it may change
	}
	return l
}

// IsLive reports whether the line is ever shown.
func (l *Line) IsLive() bool { return l.width != nil }

// Write writes above the line: whole lines.
func (l *Line) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown == "" {
		return l.out.Write(text)
	}
	_, err := fmt.Fprint(l.out, clearLine, string(text), l.shown)
	return len(text), err
}

// Show replaces the line by the parts that are not empty, as many as there is room for. What is wrong
// comes first. Without parts the line is removed. The parts are printable.
func (l *Line) Show(parts ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.width == nil {
		return
	}
	if line := fit(parts, l.width()-1); line != l.shown { // a full row would make some terminals begin another
		fmt.Fprint(l.out, clearLine, line)
		l.shown = line
	}
}

// fit joins the first parts to a line of at most so many characters.
func fit(parts []string, limit int) string {
	if limit < leastWidth-1 {
		return ""
	}
	var line strings.Builder
	room := limit
	for _, part := range parts {
		if part == "" {
			continue
		}
		if line.Len() > 0 {
			part = " · " + part
		}
		length := utf8.RuneCountInString(part)
		if length > room && line.Len() > 0 {
			break
		}
		if length > room {
			part = render.Truncate(part, room-1)
		}
		line.WriteString(part)
		room -= length
	}
	return line.String()
}

// Follow shows what describe returns, again and again, until stop is called, which removes the line.
// describe is called by a goroutine of its own.
func (l *Line) Follow(describe func() []string) (stop func()) {
	if !l.IsLive() {
		return func() {}
	}
	ended := make(chan struct{})
	var showing sync.WaitGroup
	showing.Go(func() {
		tick := time.NewTicker(Interval)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				l.Show(describe()...)
			}
		}
	})
	return sync.OnceFunc(func() {
		close(ended)
		showing.Wait()
		l.Show()
	})
}

// Progress are the parts of a line for work that has begun some time ago: how much of it is done, how
// fast, and how long the rest takes. total is 0 if it is not known.
func Progress(verb string, done, total uint64, took time.Duration) []string {
	if total == 0 || done > total {
		return []string{render.Thousands(done) + " " + verb, perSecond(done, took)}
	}
	parts := []string{
		render.Thousands(done) + " of " + render.Thousands(total) + " " + verb,
		fmt.Sprintf("%d%%", done*100/total), perSecond(done, took),
	}
	if done > 0 && took >= time.Second {
		left := time.Duration(float64(took) / float64(done) * float64(total-done))
		parts = append(parts, render.Duration(left.Round(time.Second))+" left")
	}
	return parts
}

func perSecond(done uint64, took time.Duration) string {
	if took < time.Second {
		return ""
	}
	return render.Thousands(uint64(float64(done)/took.Seconds())) + "/s"
}
