//go:build !noembed

package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue"
)

// pipeline is a server with the streams.
type pipeline struct {
	url    string
	stream jetstream.Stream
	js     jetstream.JetStream
}

func newPipeline(t *testing.T, maxPayload int32) *pipeline {
	t.Helper()
	server, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: maxPayload,
	})
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(func() { server.Shutdown(); server.WaitForShutdown() })
	nc, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Setup(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	p := &pipeline{url: server.ClientURL()}
	if p.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	if p.stream, err = p.js.Stream(t.Context(), queue.Topology{}.StreamName()); err != nil {
		t.Fatal(err)
	}
	return p
}

// publish runs the command.
func (p *pipeline) publish(t *testing.T, stdin, name string, args ...string) (shown string, err error) {
	t.Helper()
	var out strings.Builder
	cmd := New(&flags.Env{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(append([]string{"--nats-url", p.url, name}, args...))
	err = cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// bodies are what is stored, oldest first.
func (p *pipeline) bodies(t *testing.T) (bodies []string) {
	t.Helper()
	info, err := p.stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs == 0 {
		return nil
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := p.stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, string(m.Data))
	}
	return bodies
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// An event that the server does not take costs its own line, and the run goes on.
func TestTooLargeForTheServer(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 2048)
	name := file(t, "users.csv", "user_id,note\nann,x\nbob,"+strings.Repeat("y", 4096)+"\ncy,z\n")
	shown, err := p.publish(t, "", name)
	if err == nil || !strings.Contains(err.Error(), "there were bad lines") || !strings.Contains(shown, "users.csv:3: ") || !strings.Contains(shown, "published 2 events (1 bad line)") {
		t.Errorf("%v\n%s", err, shown)
	}
	if got := p.bodies(t); fmt.Sprint(got) != `[{"user_id":"ann","metadata":{"note":"x"}} {"user_id":"cy","metadata":{"note":"z"}}]` {
		t.Errorf("stored %q", got)
	}
}

// What --strict would refuse is published without it, and not without a word: from a pipe too.
func TestDoubtsArePublished(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 0)
	const text = "user_id,plan\nundefined,pro\n1.2E+15,pro\nNaN,pro\nann,pro\n"
	for name, stdin := range map[string]string{file(t, "users.csv", text): "", "-": text} {
		shown, err := p.publish(t, stdin, name)
		if want := "2 events that --strict refuses: user_id: is no id, but what a program writes where it has none\n1 event that --strict refuses: user_id: is a number that"; err != nil || strings.Count(shown, want) != 1 {
			t.Errorf("%v\n%s", err, shown)
		}
	}
	if got := len(p.bodies(t)); got != 8 {
		t.Errorf("%d events are stored", got)
	}
}

// A full stream stops the run, which names the line where another one goes on.
func TestFullStreamAndFromLine(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 0)
	config := p.stream.CachedInfo().Config
	config.MaxMsgs = 2
	if _, err := p.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	name := file(t, "users.csv", "user_id\nu1\nu2\n\nu3\nu4\n")
	shown, err := p.publish(t, "", name)
	if err == nil || !strings.HasSuffix(err.Error(), name+":5 was stored: --from-line 5 goes on there") || !strings.Contains(shown, "published 2 events") {
		t.Fatalf("%v\n%s", err, shown)
	}
	config.MaxMsgs = -1
	if _, err := p.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if shown, err = p.publish(t, "", name, "--from-line", "5"); err != nil {
		t.Fatalf("%v\n%s", err, shown)
	}
	if got := p.bodies(t); fmt.Sprint(got) != `[{"user_id":"u1"} {"user_id":"u2"} {"user_id":"u3"} {"user_id":"u4"}]` {
		t.Errorf("stored %q", got)
	}
}

// A file that breaks in its middle publishes nothing. A stream that does stops there, and says where
// another run goes on.
func TestBrokenInTheMiddle(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ text, fault string }{
		"no comma":  {`[{"user_id":"ann"},` + "\n" + `{"user_id":"bob"} {"user_id":"cy"}]`, "line 2: is not JSON: a comma is missing before an object"},
		"cut short": {"[{\"user_id\":\"ann\"},\n{\"user_id\":\"bob\"},\n{\n\"user_id\":", "line 4: is not JSON: the object that begins in line 3 does not end"},
		"no end":    {"[{\"user_id\":\"ann\"},\n{\"user_id\":\"bob\"}", "line 2: is not JSON: the array does not end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPipeline(t, 0)
			shown, err := p.publish(t, "", file(t, "users", test.text))
			if err == nil || !strings.Contains(err.Error(), "nothing was published") || !strings.Contains(shown, "users: "+test.fault) || len(p.bodies(t)) != 0 {
				t.Errorf("%v\n%s", err, shown)
			}
			shown, err = p.publish(t, test.text, "-")
			want := "standard input: " + test.fault + "; all before standard input:2 was stored: --from-line 2 goes on there"
			if err == nil || err.Error() != want || !strings.Contains(shown, "published 2 events") || len(p.bodies(t)) != 2 {
				t.Errorf("%v\nwant %s\n%s", err, want, shown)
			}
		})
	}
}

// pausing is an input that pauses for as long as a function takes, and then ends.
type pausing struct {
	io.Reader
	pause func()
}

func (r pausing) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.pause()
	}
	return n, err
}

// A run that is stopped where it waits for its input says where another goes on, as one does that waits
// for the server.
func TestStoppedWhileReading(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	defer close(ended)
	pause := func() {
		for {
			if info, err := p.stream.Info(ctx); err != nil || info.State.Msgs == 2 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cancel()
		<-ended
	}
	var out strings.Builder
	cmd := New(&flags.Env{Stdin: pausing{strings.NewReader("{\"user_id\":\"ann\"}\n{\"user_id\":\"bob\"}\n"), pause}, Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs([]string{"--nats-url", p.url})
	err := cmd.ExecuteContext(ctx)
	if want := "; all before standard input:2 was stored: --from-line 2 goes on there"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v\n%s", err, out.String())
	}

	next := record{position: position{file: "f", line: 7}, body: []byte(`{"user_id":"cy"}`)}
	r := &publishing{settings: &settings{}}
	if err := r.each(ctx, &feed{taken: []record{next}}); err == nil || r.resume != next.position {
		t.Errorf("goes on at %v, %v", r.resume, err)
	}
}

// The report of bad lines does not replace what is read, by whatever name.
func TestErrorsAreNoInput(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 0)
	const text = "user_id,plan,seats\nann,pro,1\nbob,pro\n"
	name := file(t, "users.csv", text)
	link := filepath.Join(t.TempDir(), "link.csv")
	if err := os.Symlink(name, link); err != nil {
		t.Skip(err)
	}
	for _, report := range []string{name, link} {
		shown, err := p.publish(t, "", name, "--errors", report, "--dry-run")
		if _, ok := errors.AsType[*flags.UsageError](err); !ok || err.Error() != "--errors: is one of the files to read, and would replace it" {
			t.Errorf("%v\n%s", err, shown)
		}
		if kept, err := os.ReadFile(name); err != nil || string(kept) != text {
			t.Fatalf("the file holds %q, %v", kept, err)
		}
	}
	report := file(t, "bad.txt", "of an earlier run\n")
	if shown, err := p.publish(t, "", name, "--errors", report); err == nil || !strings.Contains(shown, "published 1 event (1 bad line)") {
		t.Errorf("%v\n%s", err, shown)
	}
	if told, err := os.ReadFile(report); err != nil || !strings.HasPrefix(string(told), name+":3: ") {
		t.Errorf("the report is %q, %v", told, err)
	}
}

// What is said of columns counts however often it is given.
func TestColumnFlagsAddUp(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 0)
	name := file(t, "users.csv", "user_id,name,phone,mail,plan\nann,Ann,1,a@x.org,pro\n")
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--drop", "phone", "--drop", "mail, name"}, `{"user_id":"ann","metadata":{"plan":"pro"}}`},
		{[]string{"--only", "name", "--only", "plan"}, `{"user_id":"ann","metadata":{"name":"Ann","plan":"pro"}}`},
		{[]string{"--drop", "phone,mail", "--map", "name=full_name", "--map", "plan=tier"}, `{"user_id":"ann","metadata":{"full_name":"Ann","tier":"pro"}}`},
	} {
		if err := p.stream.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		shown, err := p.publish(t, "", name, test.args...)
		if got := p.bodies(t); err != nil || fmt.Sprint(got) != "["+test.want+"]" {
			t.Errorf("%v: stored %s, %v\n%s", test.args, got, err, shown)
		}
	}
	if _, err := p.publish(t, "", name, "--map", "name=a", "--map", "name=b"); err == nil || !strings.Contains(err.Error(), "must name each column once") {
		t.Error(err)
	}
}

// With --backfill all events of a file are backfill; without it, a large file is said to delay live
// events.
func TestBackfill(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 0)
	var text strings.Builder
	text.WriteString("user_id\n")
	for i := range maxLive + 1 {
		fmt.Fprintf(&text, "u%d\n", i)
	}
	name := file(t, "users.csv", text.String())
	const hint = "events that apps publish meanwhile wait behind these; with --backfill they go first\n"
	for _, c := range []struct {
		options        []string
		live, backfill uint64
		hinted         bool
	}{
		{options: []string{"--dry-run"}, hinted: true},
		{options: []string{"--dry-run", "--backfill"}},
		{options: []string{"--from-line", "3"}, live: maxLive},
		{options: []string{"--backfill"}, backfill: maxLive + 1},
		{options: nil, live: maxLive + 1, hinted: true},
	} {
		if err := p.stream.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		shown, err := p.publish(t, "", name, c.options...)
		if err != nil || strings.Contains(shown, hint) != c.hinted {
			t.Errorf("%v: %v\n%s", c.options, err, shown)
		}
		if got := strings.Contains(shown, ", less what live events use)\n"); got != slices.Contains(c.options, "--backfill") {
			t.Errorf("%v: shows\n%s", c.options, shown)
		}
		info, err := p.stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
		if err != nil {
			t.Fatal(err)
		}
		var live, backfill uint64
		for subject, n := range info.State.Subjects {
			if _, late := (queue.Topology{Partitions: 16}).PartitionOf(subject); late {
				backfill += n
			} else {
				live += n
			}
		}
		if live != c.live || backfill != c.backfill {
			t.Errorf("%v: %d live events and %d of backfill", c.options, live, backfill)
		}
	}
}

// Whoever publishes for many users is asked about --backfill, and whoever leaves lines out is told so.
func TestReasonToAsk(t *testing.T) {
	t.Parallel()
	r := &publishing{settings: &settings{}, summary: newSummary(), bad: &badLines{}, good: 1200}
	for i := range maxLive {
		r.summary.users.add(fmt.Sprint(i))
	}
	if r.isUnusual() {
		t.Errorf("asks for %d users", maxLive)
	}
	r.summary.users.add("one more")
	if !r.isUnusual() {
		t.Error("does not ask for one more")
	}
	r.settings.backfill = true
	if r.isUnusual() {
		t.Error("asks for as many with --backfill")
	}
	r.settings.backfill = false
	if got := r.question(); got != "publish 1,200 events without --backfill? [y/N] " {
		t.Errorf("asks %q", got)
	}
	r.settings.backfill, r.bad.count = true, 1
	if got := r.question(); got != "publish 1,200 events, leaving out 1 bad line? [y/N] " {
		t.Errorf("asks %q", got)
	}
}
