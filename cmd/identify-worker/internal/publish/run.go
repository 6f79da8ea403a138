package publish

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/export"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/tracing"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
)

// publishing is one run of publish. Files are read twice: first to see what they are and that they can
// be read to their end, then to publish. What comes from a pipe is published as it is read.
type publishing struct {
	settings *settings
	env      *flags.Env
	line     *terminal.Line // on standard error
	log      *slog.Logger
	bad      *badLines
	summary  *summary // nil before the first look

	conn             *nats.Conn // nil, as is the sender, unless something is published
	sender           *sender
	doubts           kinds
	good             int // would be published, or were handed to the sender
	sent, duplicates int
	resume           position // the first event that is not known to be stored; no line if all are
}

func (r *publishing) run(ctx context.Context, in *inputs) error {
	if in.canRepeat() || r.settings.dryRun {
		if err := r.look(ctx, in); err != nil || r.settings.dryRun {
			return err
		}
		if err := r.ask(ctx); err != nil {
			return err
		}
	}
	q, nc, err := r.settings.conn.Open(ctx, *r.settings.topology, r.log)
	if err != nil {
		return err
	}
	defer nc.Close()
	r.conn = nc
	traces := tracing.Start(ctx, r.env.Getenv, r.env.Version, r.log)
	defer traces.Close()
	publisher := q.NewPublisher(queue.PublisherConfig{Window: maxWindow, Tracer: traces.Tracer()})
	r.bad.restart(r.summary != nil)
	r.sender = newSender(publisher, r.settings.messageID == "none", r.bad)
	return r.publish(ctx, in)
}

// look reads all inputs without publishing anything, and shows what they are.
func (r *publishing) look(ctx context.Context, in *inputs) error {
	f := in.feed(&r.settings.source)
	defer f.end()
	s := newSummary()
	r.lookAt(ctx, in, f, s)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.bad.hint()
	r.summary, r.good = s, s.events
	out := r.env.Stderr
	if r.settings.dryRun {
		out = r.env.Stdout
	}
	if s.refused == 0 {
		s.show(out, f.sources, r.pace(ctx), &r.settings.source.columns, r.settings.reveal)
		if r.delaysLive() {
			fmt.Fprintln(out, "events that apps publish meanwhile wait behind these; with --backfill they go first")
		}
	}
	switch {
	case s.refused > 0 && r.settings.dryRun:
		return errors.New("nothing would be published, as there are files that cannot be read")
	case s.refused > 0:
		return errors.New("nothing was published, as there are files that cannot be read")
	}
	return nil
}

// lookAt checks all records.
func (r *publishing) lookAt(ctx context.Context, in *inputs, f *feed, s *summary) {
	p := &progress{size: in.size, bad: r.bad}
	hide := r.line.Follow(p.describe)
	defer hide()
	file := &fileCheck{bad: r.bad, summary: s}
	for {
		record, ok := f.next(ctx)
		if !ok {
			break
		}
		p.rows.Add(1)
		p.read.Store(record.read)
		if record.line < r.settings.fromLine && !record.whole {
			continue
		}
		if file.name != record.file {
			file.end()
			file = &fileCheck{bad: r.bad, summary: s, name: record.file}
		}
		event, from, _, err := r.check(record)
		switch {
		case record.whole:
			file.isMixed()
			s.refused++
			r.bad.refuse(record.position, err)
		case err != nil:
			file.isBad(record.position, err)
		default:
			file.isMixed()
			s.add(event)
			s.count(from)
			r.doubt(s.doubts, event)
		}
	}
	file.end()
}

// fileCheck finds a file of which every line is wrong in the same way, so that it is something else as a
// whole: that is one error, and not one for each line.
type fileCheck struct {
	bad     *badLines
	summary *summary
	name    string
	lines   int    // so far
	kind    string // what is wrong with all of them
	first   position
	mixed   bool // lines are good, or wrong in other ways
}

// leastWhole is how many lines must be wrong to tell that it is the whole file.
const leastWhole = 3

func (f *fileCheck) isBad(at position, err error) {
	kind := f.summary.bad.add(err)
	if f.lines++; f.lines == 1 {
		f.kind, f.first = kind, at
		f.bad.hold()
	}
	if kind != f.kind {
		f.isMixed()
	}
	f.bad.report(at, err)
}

func (f *fileCheck) isMixed() {
	f.mixed = true
	f.bad.tell()
}

func (f *fileCheck) end() {
	if f.mixed || f.lines < leastWhole {
		f.bad.tell()
		return
	}
	f.bad.forget(f.lines)
	delete(f.summary.bad, f.kind)
	f.summary.refused++
	f.bad.refuse(position{file: f.name}, fmt.Errorf("none of its %s can be published, from line %d on: %s", render.Counted(f.lines, "line"), f.first.line, f.kind))
}

// namedSource is a source with the name of its file.
type namedSource struct {
	name string
	*source
}

// rateWait is how long a preview waits for NATS. If nobody listens there, it ends at once.
const rateWait = 15 * time.Second

// pace asks NATS how fast the fleet calls, if it is there.
func (r *publishing) pace(ctx context.Context) pace {
	p := pace{rate: ratelimit.Rate{Calls: 600, Window: time.Minute}, basis: "the default limit", backfill: r.settings.backfill}
	if !r.settings.dryRun && !terminal.Is(r.env.Stderr) {
		return p // a script may have no right to ask
	}
	p.basis += "; NATS was not there to ask"
	ctx, cancel := context.WithTimeout(ctx, rateWait)
	defer cancel()
	conn := *r.settings.conn
	conn.Wait = 0
	q, nc, err := conn.Open(ctx, *r.settings.topology, slog.New(slog.DiscardHandler))
	if err != nil {
		return p
	}
	defer nc.Close()
	state, err := fleet.Read(ctx, q)
	switch {
	case err != nil:
		p.basis = "the default limit; NATS does not tell another"
	case len(state.Replicas) == 0:
		p.basis = "the default limit; no worker tells another"
	default:
		p.rate, p.basis = allowed(state.Replicas), "the fleet's limit"
	}
	return p
}

// allowed is how often a fleet may call: its limit, and those that replicas have for themselves.
func allowed(replicas []fleet.Replica) ratelimit.Rate {
	all := fleet.LowestRate(replicas)
	for _, r := range replicas {
		all = together(all, r.OwnRate)
	}
	return all
}

// together is the sum of two rates, in the longer one of their windows.
func together(a, b ratelimit.Rate) ratelimit.Rate {
	switch {
	case a.Unlimited():
		return b
	case b.Unlimited():
		return a
	}
	window := max(a.Window, b.Window)
	return ratelimit.Rate{Calls: int(math.Round((a.PerMinute() + b.PerMinute()) * window.Minutes())), Window: window}
}

const (
	// maxUnasked is how many users are published without asking.
	maxUnasked = 10_000
	// maxLive is how many are published as live events without a word: at the default limit, live
	// events of others wait for less than two minutes.
	maxLive = 1_000
)

// delaysLive reports whether live events of others would wait long for these.
func (r *publishing) delaysLive() bool {
	users, _ := r.summary.users.count()
	return !r.settings.backfill && users > maxLive
}

// isUnusual reports whether to ask before many users, or only a part of a file, are published.
func (r *publishing) isUnusual() bool {
	users, _ := r.summary.users.count()
	return users > maxUnasked || r.bad.count > 0 && r.good > 0 || r.delaysLive()
}

// ask asks on a terminal whether to publish what is unusual.
func (r *publishing) ask(ctx context.Context) error {
	if !r.isUnusual() || r.settings.yes || !terminal.Is(r.env.Stdin) || !terminal.Is(r.env.Stderr) {
		return nil
	}
	fmt.Fprint(r.env.Stderr, r.question())
	answer := make(chan string, 1)
	go func() { // reading a terminal cannot be interrupted, and ends with the process
		line, _ := bufio.NewReader(r.env.Stdin).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case line := <-answer:
		if line == "y" || line == "yes" {
			return nil
		}
	}
	return errors.New("nothing was published (--yes skips the question)")
}

func (r *publishing) question() string {
	text := "publish " + render.Counted(r.good, "event")
	if r.delaysLive() {
		text += " without --backfill"
	}
	if r.bad.count > 0 {
		text += ", leaving out " + render.Counted(r.bad.count, "bad line")
	}
	return text + "? [y/N] "
}

// publish publishes every record. It returns the first error that does not belong to a single record.
func (r *publishing) publish(ctx context.Context, in *inputs) error {
	r.good, r.doubts = 0, kinds{}
	f := in.feed(&r.settings.source)
	defer f.end()
	hide := r.line.Follow(r.describe(time.Now()))
	err := r.each(ctx, f)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	if ctx.Err() == nil {
		grace = ctx
	}
	sent, duplicates, unsure, errSend := r.sender.finish(grace)
	hide()
	if err == nil && r.summary == nil {
		showTables(r.env.Stderr, f.sources, r.settings.reveal)
	}
	r.doubts.show(r.env.Stderr, "event", "%s that --strict refuses")
	r.sent, r.duplicates = sent, duplicates
	if unsure.line > 0 {
		r.resume = unsure
	}
	if errSend != nil { // where the server failed, that is the cause of the rest
		return errSend
	}
	return err
}

// describe returns what tells how far the publishing is: what was acknowledged, not what was read.
func (r *publishing) describe(began time.Time) func() []string {
	total := uint64(0)
	if r.summary != nil {
		total = uint64(r.summary.events)
	}
	return func() []string {
		wrong := ""
		if !r.conn.IsConnected() {
			wrong = "NATS cannot be reached"
		}
		return append([]string{wrong, r.bad.describe()}, terminal.Progress("acknowledged", r.sender.acknowledged.Load(), total, time.Since(began))...)
	}
}

func (r *publishing) each(ctx context.Context, f *feed) error {
	limiter := rate.NewLimiter(rate.Inf, 1)
	if limit := r.settings.rate; !limit.Unlimited() {
		limiter.SetLimit(rate.Limit(float64(limit.Calls) / limit.Window.Seconds()))
	}
	var ids contentIDs
	var last position // where the last record began that could be read
	for {
		record, ok := f.next(ctx)
		if !ok && ctx.Err() != nil {
			r.resume = cmp.Or(record.position, last)
		}
		if !ok {
			return ctx.Err()
		}
		event, _, options, err := r.check(record)
		if record.whole {
			r.resume = last
			return fmt.Errorf("%s: %w", record.position, err)
		}
		last = record.position
		id := ""
		if err == nil && r.settings.messageID == "content" {
			id = ids.next(record.file, event.Body())
		}
		if record.line < r.settings.fromLine {
			continue
		}
		r.resume = record.position
		if err != nil {
			r.bad.report(record.position, err)
			continue
		}
		if err := limiter.Wait(ctx); err != nil {
			return err
		}
		if r.settings.backfill {
			options = append(slices.Clip(options), queue.AsBackfill())
		}
		if err := r.sender.send(ctx, record.position, event, id, options); err != nil {
			return err
		}
		if r.resume = (position{}); r.summary == nil {
			r.doubt(r.doubts, event)
		}
		r.good++
	}
}

// doubt counts an event that --strict would refuse.
func (r *publishing) doubt(doubts kinds, event userpilot.Event) {
	if r.settings.strict {
		return
	}
	if err := event.CheckStrict(); err != nil {
		doubts.add(err)
	}
}

// origin is whose shape an event had.
type origin int

const (
	ours origin = iota
	segmentCall
	exportedLetter
)

func (s *summary) count(o origin) {
	switch o {
	case segmentCall:
		s.segment++
	case exportedLetter:
		s.letters++
	}
}

// check returns the event of a record, or what is wrong with it, without any of its values. Exported
// dead letters and Segment's calls are replaced by their events.
func (r *publishing) check(record record) (event userpilot.Event, from origin, options []queue.PublishOption, err error) {
	if record.err != nil {
		return event, ours, nil, record.err
	}
	event, err = userpilot.Parse(record.body)
	if err != nil {
		event, from, options, err = r.other(record.body, event, err)
	}
	if err == nil && r.settings.strict {
		err = event.CheckStrict()
	}
	return event, from, options, err
}

// other reads what is not an event by itself.
func (r *publishing) other(body []byte, event userpilot.Event, invalid error) (userpilot.Event, origin, []queue.PublishOption, error) {
	exported, err := export.Read(body)
	switch {
	case err != nil:
		return event, ours, nil, err
	case exported != nil:
		event, err = userpilot.Parse(exported.Body)
		return event, exportedLetter, exported.Options, err
	}
	call, err := fromSegment(body)
	switch {
	case err != nil:
		return event, ours, nil, err
	case call != nil:
		event, err = userpilot.Parse(call)
		return event, segmentCall, nil, err
	}
	return event, ours, nil, invalid
}

// conclude prints the counts and reports whether all went well.
func (r *publishing) conclude(ctx context.Context, err error) error {
	r.printCounts(r.env.Stdout)
	switch stopped := ctx.Err() != nil; {
	case stopped && r.sender == nil:
		return errors.New("stopped; nothing was published")
	case stopped:
		return fmt.Errorf("stopped; %s acknowledged, others may have been stored too%s", render.Counted(r.sent+r.duplicates, "event"), r.continuation())
	case err != nil && r.sender != nil:
		return fmt.Errorf("%w%s", err, r.continuation())
	case err != nil:
		return err
	case r.bad.count > 0 && r.settings.dryRun:
		return errors.New("there are bad lines, which would be left out")
	case r.bad.count > 0:
		return errors.New("there were bad lines, which were left out")
	}
	return nil
}

// continuation says where to go on after what is known to be stored.
func (r *publishing) continuation() string {
	if r.resume.line == 0 || r.sent+r.duplicates == 0 {
		return ""
	}
	where := "there"
	if r.resume.object > 0 {
		where = "from the beginning of that line"
	}
	return fmt.Sprintf("; all before %s was stored: --from-line %d goes on %s", r.resume, r.resume.line, where)
}

func (r *publishing) printCounts(out io.Writer) {
	notes := ""
	if r.duplicates > 0 {
		notes += ", " + render.Counted(r.duplicates, "duplicate")
	}
	if r.bad.count > 0 {
		notes += ", " + render.Counted(r.bad.count, "bad line")
	}
	if notes != "" {
		notes = " (" + notes[2:] + ")"
	}
	switch {
	case r.settings.dryRun && r.summary != nil && r.summary.refused == 0 || r.settings.dryRun && r.summary == nil:
		fmt.Fprintf(out, "would publish %s%s\n", render.Counted(r.good, "event"), notes)
	case r.sender != nil:
		fmt.Fprintf(out, "published %s%s\n", render.Counted(r.sent, "event"), notes)
	}
	if r.duplicates > 0 && r.settings.messageID == "content" {
		fmt.Fprintln(r.env.Stderr, "duplicates were not stored again: if another file has changed these users since, they are not set back; publish with --message-id fresh for that")
	}
}
