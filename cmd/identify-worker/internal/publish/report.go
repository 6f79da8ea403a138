package publish

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

// maxShownLines is how many bad lines go to the terminal.
const maxShownLines = 20

// badLines reports where the input is wrong, and never what it says there.
type badLines struct {
	mu    sync.Mutex
	out   io.Writer
	file  *os.File // for all of them; nil if not wanted
	err   error    // of writing to file
	count int
	shown int  // written since the last hint
	quiet bool // only counts: a first look has reported them

	holding bool     // what is reported is not shown yet
	held    []string // the first of these
}

func newBadLines(out io.Writer, path string) (*badLines, error) {
	b := &badLines{out: out}
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

// report counts a bad line and shows it, unless a first look has shown it.
func (b *badLines) report(at position, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.count++; !b.quiet {
		b.write(at, err)
	}
}

// reportLate reports a bad line that no look could find.
func (b *badLines) reportLate(at position, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	b.write(at, err)
}

// refuse reports a file of which nothing can be read, or no more. It is no bad line.
func (b *badLines) refuse(at position, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.write(at, err)
}

func (b *badLines) write(at position, err error) {
	if b.file != nil && b.err == nil {
		_, b.err = fmt.Fprintf(b.file, "%s: %v\n", at, err)
	}
	b.shown++
	switch line := fmt.Sprintf("%s: %v\n", at, err); {
	case b.shown > maxShownLines:
	case b.holding:
		b.held = append(b.held, line)
	default:
		fmt.Fprint(b.out, line)
	}
}

// hold keeps what is reported from now on until tell shows it, or forget does not.
func (b *badLines) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = true
}

func (b *badLines) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.held {
		fmt.Fprint(b.out, line)
	}
	b.holding, b.held = false, nil
}

// forget drops as many lines from the counts as were held.
func (b *badLines) forget(lines int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count -= lines
	b.shown -= lines
	b.holding, b.held = false, nil
}

// restart begins to count anew. What a first look has shown is not shown again.
func (b *badLines) restart(looked bool) {
	b.hint()
	b.count, b.quiet = 0, looked
}

// hint says how many lines were not shown.
func (b *badLines) hint() {
	hidden := b.shown - maxShownLines
	b.shown = 0
	if hidden <= 0 {
		return
	}
	hint := "; --errors FILE writes all of them"
	if b.file != nil {
		hint = "; all are in " + b.file.Name()
	}
	fmt.Fprintf(b.out, "and %s more%s\n", render.Counted(hidden, "bad line"), hint)
}

// total is how many bad lines there were.
func (b *badLines) total() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// close ends the report, with what has ended the run: if a terminal was lost, only the file tells.
func (b *badLines) close(end error) error {
	if b.file == nil {
		return nil
	}
	if end != nil && b.err == nil {
		_, b.err = fmt.Fprintln(b.file, end)
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

// progress is how far a first look is.
type progress struct {
	rows, read atomic.Int64 // records, and bytes of all inputs
	size       int64        // of all inputs; -1 if it is not known
	bad        *badLines
}

func (p *progress) describe() []string {
	share := ""
	if p.size > 0 {
		share = fmt.Sprintf("%d%%", min(100, p.read.Load()*100/p.size))
	}
	return []string{p.bad.describe(), render.Thousands(uint64(p.rows.Load())) + " read", share}
}

// describe is the part of a live line that tells what is wrong, or nothing.
func (b *badLines) describe() string {
	if n := b.total(); n > 0 {
		return render.Counted(n, "bad line")
	}
	return ""
}
