package publish

import (
	"fmt"
	"io"
	"os"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

// maxShownLines is how many bad lines go to the terminal.
const maxShownLines = 20

// badLines reports where the input is wrong, and never what it says there.
type badLines struct {
	out   io.Writer
	file  *os.File // for all of them; nil if not wanted
	err   error    // of writing to file
	count int
	above func() // clears the terminal's line before one is printed
}

func newBadLines(out io.Writer, path string) (*badLines, error) {
	b := &badLines{out: out, above: func() {}}
	if path == "" {
		return b, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("--errors: %w", err)
	}
	b.file = f
	return b, nil
}

func (b *badLines) report(at position, err error) {
	b.count++
	if b.file != nil && b.err == nil {
		_, b.err = fmt.Fprintf(b.file, "%s: %v\n", at, err)
	}
	if b.count <= maxShownLines {
		b.above()
		fmt.Fprintf(b.out, "%s: %v\n", at, err)
	}
}

// close reports how many lines were not shown.
func (b *badLines) close() error {
	if hidden := b.count - maxShownLines; hidden > 0 {
		hint := "; --errors FILE writes all of them"
		if b.file != nil {
			hint = "; all are in " + b.file.Name()
		}
		fmt.Fprintf(b.out, "and %s more%s\n", render.Counted(hidden, "bad line"), hint)
	}
	if b.file == nil {
		return nil
	}
	err := b.file.Close()
	if b.err != nil {
		err = b.err
	}
	if err != nil {
		return fmt.Errorf("--errors: %w", err)
	}
	return nil
}

// progress is a bar of bytes, whose total is known. It names the number of events.
type progress struct{ bar *render.Bar }

func newProgress(out io.Writer, size int64, bad *badLines) *progress {
	p := &progress{render.NewBytesBar(out, size)}
	bad.above = p.bar.Clear
	return p
}

// describeEvery is how often the count of events is written into the bar.
const describeEvery = 256

func (p *progress) at(bytes int64, events int) {
	if events%describeEvery == 0 {
		p.bar.Describe(render.Counted(events, "event"))
	}
	p.bar.Set(bytes)
}

func (p *progress) done() { p.bar.Clear() }
