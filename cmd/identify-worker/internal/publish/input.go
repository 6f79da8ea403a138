package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
)

// maxLineBytes bounds a line of the input. It is more than the largest event, so that an event
// that is too large gets its own error.
const maxLineBytes = 1 << 20

// position is where a record begins.
type position struct {
	file   string
	line   int
	object int // its number in the file, if another one begins in the same line before it
}

func (p position) String() string {
	if p.line == 0 {
		return render.Visible(p.file, render.MaxText)
	}
	if p.object > 0 {
		return fmt.Sprintf("%s:%d, object %d", render.Visible(p.file, render.MaxText), p.line, p.object)
	}
	return fmt.Sprintf("%s:%d", render.Visible(p.file, render.MaxText), p.line)
}

// record is one event of the input, or what is wrong with it.
type record struct {
	position
	body  []byte
	err   error
	whole bool  // err is of the file as a whole: nothing of it, or no more, can be read
	read  int64 // bytes of all inputs up to here
}

// recordReader reads one input. At its end it returns io.EOF. An error ends the input; what is
// wrong with a single record is returned with the record.
type recordReader interface {
	next() (record, error)
}

// inputs are all files, to be read one after the other.
type inputs struct {
	files []input
	size  int64 // of all files; -1 if unknown
}

type input struct {
	name string
	io.Reader
	close func() error
	// again returns a reader of what the file held when it was opened. It is nil for what can be read
	// only once.
	again func() io.Reader
}

// holds reports whether one of the inputs is the file with that name, or another name of it.
func (in *inputs) holds(name string) bool {
	file, err := os.Stat(name)
	return err == nil && file.Mode().IsRegular() && slices.ContainsFunc(in.files, func(f input) bool {
		opened, ok := f.Reader.(*os.File)
		if !ok {
			return false
		}
		info, err := opened.Stat()
		return err == nil && os.SameFile(info, file)
	})
}

// canRepeat reports whether the inputs can be read more than once.
func (in *inputs) canRepeat() bool {
	return !slices.ContainsFunc(in.files, func(f input) bool { return f.again == nil })
}

const stdinName = "standard input"

// openInputs opens all files before anything is published.
func openInputs(ctx context.Context, env *flags.Env, names []string) (*inputs, error) {
	in := &inputs{}
	if len(names) == 0 {
		names = []string{"-"}
	}
	for _, name := range names {
		if err := in.open(ctx, env, name); err != nil {
			in.close()
			return nil, err
		}
	}
	if names[0] == "-" && terminal.Is(env.Stdin) {
		fmt.Fprintln(env.Stderr, "reading events from the terminal; end with Ctrl-D")
	}
	return in, nil
}

func (in *inputs) open(ctx context.Context, env *flags.Env, name string) error {
	if name == "-" {
		in.files = append(in.files, input{name: stdinName, Reader: env.Stdin, close: func() error { return nil }})
		if f, ok := env.Stdin.(*os.File); ok {
			return in.measure(f)
		}
		in.size = -1
		return nil
	}
	f, err := openFile(ctx, name)
	if err != nil {
		return err
	}
	in.files = append(in.files, input{name: name, Reader: f, close: f.Close})
	return in.measure(f)
}

// measure finds out about the input that was opened last.
func (in *inputs) measure(f *os.File) error {
	last := &in.files[len(in.files)-1]
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory: give the files in it", last.name)
	case !info.Mode().IsRegular():
		in.size = -1
		return nil
	}
	begin, err := f.Seek(0, io.SeekCurrent) // a shell may have read from standard input
	if err != nil {
		return err
	}
	size := max(0, info.Size()-begin)
	last.again = func() io.Reader { return io.NewSectionReader(f, begin, size) }
	if in.size >= 0 {
		in.size += size
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

func (in *inputs) close() {
	for _, f := range in.files {
		_ = f.close()
	}
}

// feed reads all inputs once, by a goroutine of its own: reading a terminal or a pipe cannot be
// interrupted, and a signal must not wait for it.
type feed struct {
	inputs  *inputs
	options *sourceOptions
	sources []namedSource // to be read after the end
	batches chan []record
	stop    chan struct{}
	filling []record // the goroutine's
	size    int      // bytes of these
	taken   []record // the caller's
	bytes   int64
}

// batchRecords and batchBytes are how much is handed over at a time. One record at a time would cost
// more than reading it, and a compressed file may hold much in what is read at once.
const (
	batchRecords = 256
	batchBytes   = 256 << 10
)

func (in *inputs) feed(o *sourceOptions) *feed {
	f := &feed{inputs: in, options: o, batches: make(chan []record, 4), stop: make(chan struct{})}
	go f.read()
	return f
}

// end ends the reading as soon as the current read returns.
func (f *feed) end() { close(f.stop) }

// next returns the next record, until there is none or ctx ends.
func (f *feed) next(ctx context.Context) (record, bool) {
	for len(f.taken) == 0 {
		select {
		case <-ctx.Done():
			return record{}, false
		case batch, ok := <-f.batches:
			if !ok {
				return record{}, false
			}
			f.taken = batch
		}
	}
	r := f.taken[0]
	f.taken = f.taken[1:]
	return r, ctx.Err() == nil
}

func (f *feed) read() {
	defer close(f.batches)
	for _, file := range f.inputs.files {
		if !f.readOne(file) {
			return
		}
	}
	f.flush()
}

// readOne reads a file. It reports whether to go on with the next.
func (f *feed) readOne(file input) bool {
	from := file.Reader
	if file.again != nil {
		from = file.again()
	}
	source, err := openSource(file.name, countingReader{from, f}, f.options)
	if err == nil {
		f.sources = append(f.sources, namedSource{file.name, source})
	}
	for err == nil {
		var r record
		if r, err = source.next(); err == nil {
			r.file = file.name
			if !f.add(r) {
				return false
			}
		}
	}
	if source != nil {
		source.free()
	}
	if errors.Is(err, io.EOF) {
		return true
	}
	return f.add(record{position: position{file: file.name}, err: err, whole: true})
}

func (f *feed) add(r record) bool {
	r.read = f.bytes
	f.filling = append(f.filling, r)
	f.size += len(r.body)
	return len(f.filling) < batchRecords && f.size < batchBytes || f.flush()
}

// flush hands over what was read. It reports whether somebody still wants it.
func (f *feed) flush() bool {
	if len(f.filling) == 0 {
		return true
	}
	select {
	case f.batches <- f.filling:
		f.filling, f.size = make([]record, 0, batchRecords), 0
		return true
	case <-f.stop:
		return false
	}
}

// countingReader counts what has been read, for the progress bar. Before it reads more, which may
// take its time, what has been read is handed over.
type countingReader struct {
	io.Reader
	feed *feed
}

func (c countingReader) Read(p []byte) (int, error) {
	c.feed.flush()
	n, err := c.Reader.Read(p)
	c.feed.bytes += int64(n)
	return n, err
}
