package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// importFiles measures how the command publish reads files: a table of ten columns against the same
// events as NDJSON, and the preview of that table.
func importFiles(ctx context.Context, b *bench) (rows []row, err error) {
	dir, err := os.MkdirTemp("", "identify-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	f := importing{bench: b, dir: dir, command: filepath.Join(dir, "identify-worker")}
	if err := f.build(ctx); err != nil {
		return nil, err
	}
	if rows, err = f.previews(ctx); err != nil {
		return nil, err
	}
	published, err := f.publishes(ctx)
	return append(rows, published), err
}

type importing struct {
	*bench
	dir, command string
}

func (f *importing) build(ctx context.Context) error {
	said, err := exec.CommandContext(ctx, "go", "build", "-o", f.command, "github.com/identify-worker/identify-worker/cmd/identify-worker").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the command: %w\n%s", err, said)
	}
	for name, write := range map[string]func(*bufio.Writer){
		"users.csv": func(w *bufio.Writer) { writeTable(w, f.importRows) }, "fifth.csv": func(w *bufio.Writer) { writeTable(w, f.importRows/5) },
		"one.csv": func(w *bufio.Writer) { writeTable(w, 1) }, "wide.csv": writeWide,
		"users.ndjson": func(w *bufio.Writer) { writeLines(w, f.importRows) },
	} {
		file, err := os.Create(filepath.Join(f.dir, name))
		if err != nil {
			return err
		}
		w := bufio.NewWriter(file)
		write(w)
		if err := errors.Join(w.Flush(), file.Close()); err != nil {
			return err
		}
	}
	return nil
}

func writeTable(w *bufio.Writer, rows int) {
	fmt.Fprintln(w, "user_id,name,email,plan,seats:number,active:bool,city,zip,company.id,company.name")
	for i := range rows {
		fmt.Fprintf(w, "user-%d,\"Example, Ann %d\",ann.%d@example.com,pro,%d,true,Köln,0%d,c-%d,Acme %d\n", i, i, i, i%50, 10000+i%90000, i%1000, i%1000)
	}
}

// writeLines writes the events that the table becomes.
func writeLines(w *bufio.Writer, rows int) {
	for i := range rows {
		fmt.Fprintf(w, `{"user_id":"user-%d","metadata":{"name":"Example, Ann %d","email":"ann.%d@example.com","plan":"pro","seats":%d,"active":true,"city":"Köln","zip":"0%d"},"company":{"id":"c-%d","name":"Acme %d"}}`+"\n",
			i, i, i, i%50, 10000+i%90000, i%1000, i%1000)
	}
}

const wideColumns = 60_000

func writeWide(w *bufio.Writer) {
	fmt.Fprint(w, "user_id")
	for i := range wideColumns {
		fmt.Fprintf(w, ",c%d", i)
	}
	fmt.Fprintln(w, "\nann"+strings.Repeat(",x,", wideColumns/2)) // all of them would be too large for an event
}

// ran is what a command took.
type ran struct {
	elapsed, processor time.Duration
	peak               int64 // most resident memory, in bytes
}

func (f *importing) publish(ctx context.Context, file string, args ...string) (ran, error) {
	cmd := exec.CommandContext(ctx, f.command, append([]string{"publish", "--yes", filepath.Join(f.dir, file)}, args...)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	began := time.Now()
	peak, err := runMeasured(cmd)
	if err != nil {
		return ran{}, fmt.Errorf("publish %s: %w\n%s", file, err, said.String())
	}
	return ran{
		elapsed: time.Since(began), peak: peak,
		processor: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(),
	}, nil
}

// runMeasured runs a command and returns its most resident memory, as far as it was seen every few
// milliseconds. What the system says at the end is no less than the memory of the process that started
// it.
func runMeasured(cmd *exec.Cmd) (peak int64, err error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return peak, err
		case <-tick.C:
			if seen, err := peakOf(cmd.Process.Pid); err == nil { // otherwise it has just ended
				peak = seen
			}
		}
	}
}

// preview measures a dry run: the best of some, as other processes can only make it look worse.
func (f *importing) preview(ctx context.Context, file string) (best ran, err error) {
	for i := range f.rounds {
		r, err := f.publish(ctx, file, "--dry-run", "--nats-url", "nats://127.0.0.1:1")
		if err != nil {
			return best, err
		}
		f.say("import: dry run of %s: %v, %v of processor time, %d MiB", file, r.elapsed, r.processor, r.peak>>20)
		if i == 0 || r.processor < best.processor {
			best = r
		}
	}
	return best, nil
}

// previews measures dry runs. On a busy machine their processor time tells more than what they took.
func (f *importing) previews(ctx context.Context) ([]row, error) {
	all := map[string]ran{}
	for _, file := range []string{"users.csv", "fifth.csv", "wide.csv", "one.csv"} {
		var err error
		if all[file], err = f.preview(ctx, file); err != nil {
			return nil, err
		}
	}
	whole, fifth, wide, one := all["users.csv"], all["fifth.csv"], all["wide.csv"], all["one.csv"]
	return []row{{
		what:     fmt.Sprintf("`publish --dry-run` of %d rows of 10 columns", f.importRows),
		goal:     "under 3 s of processor time; memory under 64 MiB, and at most 1.25 times that of a fifth of the rows",
		measured: fmt.Sprintf("%.1f s (elapsed %.1f s), %d MiB; a fifth of it: %d MiB", whole.processor.Seconds(), whole.elapsed.Seconds(), whole.peak>>20, fifth.peak>>20),
		pass:     whole.processor < 3*time.Second && whole.peak < 64<<20 && 4*whole.peak <= 5*fifth.peak,
	}, {
		what:     fmt.Sprintf("the same of %d columns, half of them filled, above a table of two", wideColumns),
		goal:     "under 100 ms of processor time",
		measured: fmt.Sprintf("%d ms", max(0, wide.processor-one.processor).Milliseconds()),
		pass:     wide.processor-one.processor < 100*time.Millisecond,
	}}, nil
}

// publishes compares the speed of both kinds of files. It judges by processor time, which other
// processes change the least.
func (f *importing) publishes(ctx context.Context) (row, error) {
	var ratios, processors []float64
	var peak int64
	disturbed, err := f.repeat(ctx, min(f.rounds, f.importRounds), func(round int) (others float64, keep func(), err error) {
		turns := map[string]ran{}
		for turn := range 2 {
			file := []string{"users.csv", "users.ndjson"}[(turn+round)%2]
			u, r, err := f.publishTurn(ctx, file)
			if err != nil {
				return 0, nil, err
			}
			alone := r.processor // the meter does not know of it
			r.processor += u.nats
			turns[file], others = r, max(others, u.others()-alone.Seconds()/u.elapsed.Seconds()/float64(runtime.NumCPU()))
		}
		table, lines := turns["users.csv"], turns["users.ndjson"]
		f.say("import, round %d: the table in %v (%v), NDJSON in %v (%v)", round+1, table.elapsed, table.processor, lines.elapsed, lines.processor)
		peak = max(peak, table.peak)
		return others, func() {
			ratios = append(ratios, ratio(lines.elapsed, table.elapsed))
			processors = append(processors, ratio(lines.processor, table.processor))
		}, nil
	})
	if err != nil {
		return row{}, err
	}
	return row{
		what:     fmt.Sprintf("`publish` of %d rows of 10 columns, against the same events as NDJSON", f.importRows),
		goal:     "at least 0.90 by processor time of both sides, memory under 128 MiB",
		measured: fmt.Sprintf("%.2f (elapsed %.2f; median of %d rounds%s), %d MiB", median(processors), median(ratios), len(ratios), disturbed, peak>>20),
		pass:     median(processors) >= 0.90 && peak < 128<<20,
	}, nil
}

// publishTurn publishes a file to a site of its own.
func (f *importing) publishTurn(ctx context.Context, file string) (u used, r ran, err error) {
	ctx, s, err := open(ctx, nil, nil)
	if err != nil {
		return u, r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	before, err := s.meter()
	if err != nil {
		return u, r, err
	}
	if r, err = f.publish(ctx, file, "--nats-url", s.natsURL); err != nil {
		return u, r, err
	}
	after, err := s.meter()
	return after.less(before), r, err
}
