package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
)

// maxLineBytes bounds a line of the input. It is more than the largest event, so that an event
// that is too large gets its own error.
const maxLineBytes = 1 << 20

// position is where a record begins.
type position struct {
	file string
	line int
}

func (p position) String() string {
	return fmt.Sprintf("%s:%d", render.Visible(p.file, render.MaxText), p.line)
}

// record is one event of the input, or what is wrong with it.
type record struct {
	position
	body    []byte
	options []queue.PublishOption // of a dead letter that was exported
	err     error
	read    int64 // bytes of all inputs up to here
}

// recordReader reads one input. At its end it returns io.EOF. An error ends the input; what is
// wrong with a single record is returned with the record.
type recordReader interface {
	next() (line int, body []byte, bad error, err error)
}

// inputs are all files, read one after the other by a goroutine of their own: reading a
// terminal or a pipe cannot be interrupted, and a signal must not wait for it.
type inputs struct {
	files   []input
	size    int64 // of all files; -1 if unknown
	records chan record
	stop    chan struct{}
	err     error // why reading ended early; set before records is closed
}

type input struct {
	name string
	io.Reader
	close  func() error
	format string
}

const stdinName = "standard input"

// openInputs opens all files before anything is published.
func openInputs(ctx context.Context, env *flags.Env, s *settings, names []string) (*inputs, error) {
	in := &inputs{records: make(chan record, 256), stop: make(chan struct{})}
	if len(names) == 0 {
		names = []string{"-"}
	}
	for _, name := range names {
		if err := in.open(ctx, env, s.format, name); err != nil {
			in.close()
			return nil, err
		}
	}
	if names[0] == "-" && render.IsTerminal(env.Stdin) {
		fmt.Fprintln(env.Stderr, "reading events from the terminal; end with Ctrl-D")
	}
	go in.read(s)
	return in, nil
}

func (in *inputs) open(ctx context.Context, env *flags.Env, format, name string) error {
	if format == "auto" {
		format = "ndjson"
		if strings.EqualFold(filepath.Ext(name), ".csv") {
			format = "csv"
		}
	}
	if name == "-" {
		in.size = -1
		in.files = append(in.files, input{stdinName, env.Stdin, func() error { return nil }, format})
		return nil
	}
	f, err := openFile(ctx, name)
	if err != nil {
		return err
	}
	in.files = append(in.files, input{name, f, f.Close, format})
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory", name)
	case !info.Mode().IsRegular():
		in.size = -1
	case in.size >= 0:
		in.size += info.Size()
	}
	return nil
}

// openFile opens a file for reading. Opening a named pipe blocks until somebody writes to it;
// openFile gives up when ctx ends.
func openFile(ctx context.Context, name string) (*os.File, error) {
	if info, err := os.Stat(name); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return os.Open(name)
	}
	type opened struct {
		*os.File
		err error
	}
	done := make(chan opened, 1)
	go func() {
		f, err := os.Open(name)
		done <- opened{f, err}
	}()
	select {
	case o := <-done:
		return o.File, o.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w before it could be opened", render.Visible(name, render.MaxText), context.Cause(ctx))
	}
}

// next returns the next record, until there is none or ctx ends.
func (in *inputs) next(ctx context.Context) (record, bool) {
	select {
	case <-ctx.Done():
		return record{}, false
	default:
	}
	select {
	case <-ctx.Done():
		return record{}, false
	case r, ok := <-in.records:
		return r, ok
	}
}

// close ends the reading as soon as the current read returns.
func (in *inputs) close() {
	close(in.stop)
	for _, f := range in.files {
		_ = f.close()
	}
}

func (in *inputs) read(s *settings) {
	defer close(in.records)
	count := &countingReader{}
	for _, f := range in.files {
		count.Reader = f
		var reader recordReader = newNDJSON(count)
		if f.format == "csv" {
			reader = newCSV(count, s.null)
		}
		if err := in.readOne(f.name, reader, count); err != nil {
			in.err = fmt.Errorf("read %s: %w", f.name, err)
			return
		}
	}
}

func (in *inputs) readOne(name string, reader recordReader, count *countingReader) error {
	for {
		line, body, bad, err := reader.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case in.records <- record{position: position{name, line}, body: body, err: bad, read: count.bytes}:
		case <-in.stop:
			return nil
		}
	}
}

// countingReader counts what has been read, for the progress bar.
type countingReader struct {
	io.Reader
	bytes int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.bytes += int64(n)
	return n, err
}
