//go:build !noembed

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// TestScripts runs testdata/script. A script has these commands beside testscript's own:
//
//	start NAME [VAR=VALUE...] ARGS...  runs identify-worker in the background
//	await NAME REGEXP [VAR]            waits until it has printed that; VAR becomes the first group
//	quit NAME                          asks it to stop, and waits until it has
//	finish NAME                        waits until it ends by itself
//	watch REGEXP ARGS...               runs a command again and again until its output matches
//	steady                             takes out of stdout what differs from run to run
//	sameMask FILE...                   checks that a user's name is in all of them, and the same
//	fetch URL [REGEXP]                 gets a page, again until it matches; with ! it must not be a 200
//
// quit and finish expect status 0, with ! another one. What was printed or fetched is
// then in stdout and stderr.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Values[processesKey{}] = map[string]*process{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": start, "await": await, "quit": quit, "finish": finish, "fetch": fetch, "watch": watch, "steady": steady, "sameMask": sameMask,
		},
	})
}

// run runs the whole command.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) int {
	return Run(ctx, args, flags.Env{Stdin: stdin, Stdout: stdout, Stderr: stderr, Getenv: getenv})
}

// patience is for a machine that is busy; nothing takes as long where all is well.
const patience = time.Minute

// poll asks until the answer is yes, or for no longer than patience. Between two questions it leaves the
// processors to those that are to make it so.
func poll(ask func() (yes bool)) (yes bool) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ask(); <-tick.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

type processesKey struct{}

// process is a command in the background of a script.
type process struct {
	cancel      context.CancelFunc
	out, err    printed
	ended       chan struct{}
	status      int // after ended
	anyProgress chan struct{}
}

// printed is what a process has printed so far.
type printed struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan<- struct{}
}

func (p *printed) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
	return p.text.Write(text)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

func start(ts *testscript.TestScript, _ bool, args []string) {
	name, args := args[0], args[1:]
	env := map[string]string{}
	for variable, text, found := strings.Cut(args[0], "="); found; variable, text, found = strings.Cut(args[0], "=") {
		env[variable], args = text, args[1:]
	}
	ctx, cancel := context.WithCancel(context.Background())
	changed := make(chan struct{}, 1)
	p := &process{cancel: cancel, ended: make(chan struct{}), anyProgress: changed}
	p.out.changed, p.err.changed = changed, changed
	ts.Value(processesKey{}).(map[string]*process)[name] = p
	go func() {
		defer close(p.ended)
		p.status = run(ctx, args, strings.NewReader(""), &p.out, &p.err, func(name string) string { return env[name] })
	}()
	ts.Defer(func() {
		cancel()
		select {
		case <-p.ended:
		case <-time.After(patience):
			ts.Fatalf("%s does not end:\n%s", name, p.err.String())
		}
	})
}

func started(ts *testscript.TestScript, args []string, least, most int) *process {
	if len(args) < least || len(args) > most {
		ts.Fatalf("wrong number of arguments")
	}
	p := ts.Value(processesKey{}).(map[string]*process)[args[0]]
	if p == nil {
		ts.Fatalf("%s was not started", args[0])
	}
	return p
}

func await(ts *testscript.TestScript, _ bool, args []string) {
	p := started(ts, args, 2, 3)
	pattern := regexp.MustCompile(args[1])
	deadline := time.After(patience)
	for {
		text := p.out.String() + p.err.String()
		if groups := pattern.FindStringSubmatch(text); groups != nil {
			if len(args) == 3 {
				ts.Setenv(args[2], groups[1])
			}
			return
		}
		select {
		case <-p.anyProgress:
		case <-p.ended:
			ts.Fatalf("%s ended with status %d before it printed %q:\n%s", args[0], p.status, args[1], text)
		case <-deadline:
			ts.Fatalf("%s did not print %q:\n%s", args[0], args[1], text)
		}
	}
}

func quit(ts *testscript.TestScript, neg bool, args []string) {
	started(ts, args, 1, 1).cancel()
	finish(ts, neg, args)
}

func finish(ts *testscript.TestScript, neg bool, args []string) {
	p := started(ts, args, 1, 1)
	select {
	case <-p.ended:
	case <-time.After(patience):
		ts.Fatalf("%s does not end:\n%s", args[0], p.err.String())
	}
	_, _ = io.WriteString(ts.Stdout(), p.out.String())
	_, _ = io.WriteString(ts.Stderr(), p.err.String())
	if (p.status == 0) == neg {
		ts.Fatalf("%s ended with status %d:\n%s", args[0], p.status, p.err.String())
	}
}

func watch(ts *testscript.TestScript, _ bool, args []string) {
	pattern := regexp.MustCompile("(?m)" + args[0])
	printed := poll(func() bool {
		ts.Check(ts.Exec(args[1], args[2:]...))
		return pattern.MatchString(ts.ReadFile("stdout"))
	})
	if !printed {
		ts.Fatalf("%s does not print %q:\n%s", args[1], args[0], ts.ReadFile("stdout"))
	}
}

// steady writes times, random names and the like as one that has the same width.
func steady(ts *testscript.TestScript, _ bool, _ []string) {
	text := ts.ReadFile("stdout")
	for _, rule := range [][2]string{
		{`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`, "20##-##-##T##:##:##Z"},
		{`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z`, "TIME"},
		{`("(?:group|Dead-Group)": ?"|of group |(?m:^ *))[0-9a-f]{8}("|\n|  )`, "$1########$2"},
		{`"Dead-Seal":"[\w-]{43}"`, `"Dead-Seal":"SEAL"`},
		{`, died (at|from) .*`, ", died THEN"},
		{`, [0-9.]+m?s later`, ", SOON later"},
		{`<e-mail [0-9a-f]{6}>`, "<e-mail ######>"},
		{`in partition \d+`, "in partition N"},
		{`"(partition|Dead-Partition)":"\d+"`, `"$1":"N"`},
		{`stand-in-\d+`, "stand-in-N"},
		{`\d{19}\.(\d)`, "CREATED.$1"},
		{`\(run \w{22}\)`, "(run RUN)"},
		{`"run": "\w{22}"`, `"run": "RUN"`},
	} {
		text = regexp.MustCompile(rule[0]).ReplaceAllString(text, rule[1])
	}
	_, _ = io.WriteString(ts.Stdout(), text)
	_, _ = io.WriteString(ts.Stderr(), ts.ReadFile("stderr"))
}

func sameMask(ts *testscript.TestScript, _ bool, files []string) {
	first := ""
	for _, file := range files {
		mask := regexp.MustCompile(`<e-mail [0-9a-f]{6}>`).FindString(ts.ReadFile(file))
		if mask == "" || first != "" && mask != first {
			ts.Fatalf("%s has %q, not %q", file, mask, first)
		}
		first = mask
	}
}

func fetch(ts *testscript.TestScript, neg bool, args []string) {
	pattern := regexp.MustCompile(strings.Join(args[1:], ""))
	var page []byte
	matches := poll(func() bool {
		answer, err := http.Get(args[0])
		ts.Check(err)
		page, err = io.ReadAll(answer.Body)
		ts.Check(err)
		ts.Check(answer.Body.Close())
		return (answer.StatusCode == http.StatusOK) != neg && pattern.Match(page)
	})
	if !matches {
		ts.Fatalf("%s answers: %s", args[0], page)
	}
	_, _ = ts.Stdout().Write(page)
}

// The reason why a worker ends is one line of its log if that is JSON, with the same exit status.
func TestTheEndIsInTheLog(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args   string
		status int
		want   string
	}{
		{"work", 2, "set USERPILOT_API_KEY"},
		{"up", 2, "set USERPILOT_API_KEY"},
		{"up --demo --listen 127.0.0.1:0 --store /dev/null", 1, "/dev/null"},
	} {
		for format, begin := range map[string]string{"json": `{"time":`, "text": "identify-worker: "} {
			var stdout, stderr strings.Builder
			args := append(strings.Fields(test.args), "--log-format", format, "--log-level", "error")
			status := run(t.Context(), args, strings.NewReader(""), &stdout, &stderr, func(string) string { return "" })
			if text := stderr.String(); status != test.status || strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, begin) || !strings.Contains(text, test.want) {
				t.Errorf("%v: status %d\n%s", args, status, text)
			}
		}
	}
}

// TestOneLineOnWrongUsage is the promise to scripts: one line that names what is wrong, and
// status 2.
func TestOneLineOnWrongUsage(t *testing.T) {
	t.Parallel()
	key := "USERPILOT_API_KEY=k"
	for _, test := range []struct{ env, args, want string }{
		{"", "nope", `unknown command "nope" for "identify-worker" (see identify-worker --help)`},
		{"", "work extra", `unknown command "extra" for "identify-worker work" (see identify-worker work --help)`},
		{"", "--nope", "unknown flag: --nope (see identify-worker --help)"},
		{"", "work --nope", "unknown flag: --nope (see identify-worker work --help)"},
		{"", "work --rate", "flag needs an argument: --rate"},
		{"", "work", "set USERPILOT_API_KEY, or give --api-key-file [USERPILOT_API_KEY_FILE]"},
		{"", "up", "set USERPILOT_API_KEY"},
		{"USERPILOT_API_KEY=a b", "work", "USERPILOT_API_KEY: "},
		{"", "work --api-key-file /nowhere/key", "--api-key-file: open /nowhere/key: no such file"},
		{"USERPILOT_API_KEY_FILE=/nowhere/key", "work", "--api-key-file: "},
		{key, "work --rate many", "--rate: must be calls/window such as 600/1m"},
		{key + ",IDENTIFY_RATE=many", "work", "IDENTIFY_RATE: must be calls/window such as 600/1m"},
		{key + ",IDENTIFY_COALESCE=maybe", "work", "IDENTIFY_COALESCE: must be true or false"},
		{key, "work --concurrency 0", "--concurrency: must be a whole number from 1 to 10000"},
		{key, "work --timeout 0s", "--timeout: must be a duration above 0"},
		{key, "work --backoff-initial 2s --backoff-max 1s", "--backoff-max: must not be below --backoff-initial"},
		{key, "work --rate 5/1m --burst 6", "--burst: must not be above the calls of --rate"},
		{key, "work --rate-scope world", "--rate-scope: must be fleet or replica"},
		{key, "work --member-ttl 1500ms", "--member-ttl: must be whole seconds, 2s or more"},
		{key, "work --memory 1KiB", "--memory: must be a size of 1MiB or more"},
		{key, "work --memory lots", "--memory: must be a size"},
		{key, "work --listen 8080", "--listen: must be host:port"},
		{key, "work --listen localhost:http", "--listen: must be host:port"},
		{key, "work --wait soon", "--wait: must be a duration such as 10s, 0 or forever"},
		{key, "work --name UPPER", "--name: must be lower-case letters"},
		{key, "work --nats-url http://nats", "--nats-url: must begin with nats://"},
		{"NATS_CREDS=/nowhere/creds", "status", "--nats-creds: open /nowhere/creds: no such file"},
		{key, "work --replicas 2", "--replicas: 2 is not 1, 3 or 5"},
		{key, "work --partitions 257", "--partitions: must be a whole number from 1 to 256"},
		{key, "work --endpoint http://example.com", "--endpoint: plain http"},
		{key, "work --endpoint https://u:secret@example.com", "--endpoint: must not contain a user name or a password"},
		{key, "work --endpoint https://example.com", "--endpoint: the host is neither under userpilot.io nor one that the operator has allowed (see --allow-endpoint)"},
		{key, "work --endpoint https://example.com --insecure-endpoint", "--endpoint: the host is neither under"},
		{key, "work --endpoint https://analytex.userpilot.io/v1/identify", "--endpoint: leave /v1/identify out: the client adds it"},
		{"USERPILOT_API_KEY=MY_KEY=secret", "work", "USERPILOT_API_KEY: API key: has the name of a variable before it"},
		{key, "work --allow-endpoint example.com/path", "--allow-endpoint: \"example.com/path\" is not a host"},
		{key + ",IDENTIFY_PROXY=u:secret@proxy", "work", "--proxy: is not a URL such as http://proxy.example:3128"},
		{"", "doctor extra", `unknown command "extra"`},
		{"", "doctor --rate many", "--rate: must be calls/window such as 600/1m"},
		{"", "doctor --endpoint http://example.com", "--endpoint: plain http"},
		{"", "doctor --rate 5/1m --burst 6", "--burst: must not be above the calls of --rate"},
		{"", "doctor --name UPPER", "--name: must be lower-case letters"},
		{"IDENTIFY_DOCTOR_WAIT=soon", "doctor", "IDENTIFY_DOCTOR_WAIT: must be a duration such as 10s, 0 or forever"},
		{key, "work --log-format xml", "--log-format: must be text or json"},
		{"IDENTIFY_LOG_LEVEL=loud", "setup", "IDENTIFY_LOG_LEVEL: must be debug, info, warn or error"},
		{"", "publish --format xml", "--format: must be auto, ndjson, json or csv"},
		{"", "publish --message-id line", "--message-id: must be fresh, content or none"},
		{"", "dlq nope", `unknown command "nope"`},
		{"", "dlq stats extra", `unknown command "extra"`},
		{"", "dlq ls --group x", "--group: must be a fingerprint as shown by stats"},
		{"", "dlq ls --reason refused", "--reason: must be invalid, rejected, retries_exhausted, panic or untracked"},
		{"", "dlq discard --reason refused", "--reason: must be invalid, rejected, "},
		{"", "dlq ls --status 4xx", "--status: must be a status such as 422"},
		{"", "dlq ls --id 0", "--id: must be a number as shown by ls"},
		{"IDENTIFY_DLQ_ID=x", "dlq ls", "IDENTIFY_DLQ_ID: must be a number"},
		{"", "dlq ls --since soon", "--since: must be a time such as 2026-01-02T15:04:05Z"},
		{"", "dlq ls --since 1h --until 2h", "--until: must be after --since"},
		{"", "dlq ls --match .a|", "--match: must be a jq expression: unexpected EOF"},
		{"", "dlq ls --match nope", "--match: must be a jq expression: function not defined: nope/0"},
		{"", "dlq ls --user=", "--user: must be a user's id"},
		{"", "dlq show", "give the number of a dead letter"},
		{"", "dlq show x", `"x": must be the number of a dead letter`},
		{"", "dlq replay x", `"x": must be the number of a dead letter`},
		{"", "dlq discard --note y 0", `"0": must be the number of a dead letter`},
		{"", "dlq export 1,2", `"1,2": must be the number of a dead letter`},
		{"", "dlq replay --set plan=pro", "--set: must be a path and a value, such as metadata.plan=pro"},
		{"", "dlq replay --set .plan==pro", "--set: must have one equals sign"},
		{"", "dlq replay --delete plan", "--delete: must be a path such as metadata.plan"},
		{"", "dlq replay --edit .a|", "--edit: must be a jq expression: unexpected EOF"},
		{"", "dlq replay --rate many", "--rate: must be calls/window"},
		{"", "dlq replay --canary -1", "--canary: must be a whole number from 0"},
		{"", "dlq replay --connect-wait soon", "--connect-wait: must be a duration such as 10s"},
		{"", "dlq export --json", "unknown flag: --json"},
		{"", "dlq discard --all", "--note: must give the reason"},
		{"", "dlq purge", "--user: must be the id of the user to erase"},
		{"", "dlq history extra", `unknown command "extra"`},
		{"", "fake-userpilot --fault status=nope", "--fault: "},
		{"", "fake-userpilot --latency forever", "--latency: must be a duration such as 500ms or 10s, or 0"},
		{"IDENTIFY_FAKE_RATE=x", "fake-userpilot", "IDENTIFY_FAKE_RATE: must be calls/window"},
	} {
		t.Run(test.env+" "+test.args, func(t *testing.T) {
			t.Parallel()
			env := map[string]string{}
			for pair := range strings.SplitSeq(test.env, ",") {
				name, text, _ := strings.Cut(pair, "=")
				env[name] = text
			}
			var stdout, stderr strings.Builder
			status := run(t.Context(), strings.Fields(test.args), strings.NewReader(""), &stdout, &stderr, func(name string) string { return env[name] })
			lines := strings.Split(stderr.String(), "\n")
			if status != 2 || len(lines) != 2 || lines[1] != "" || !strings.Contains(lines[0], test.want) {
				t.Errorf("status %d, stderr %q; want %q", status, stderr.String(), test.want)
			}
			if stdout.String() != "" || strings.Contains(stderr.String(), "secret") {
				t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
			}
		})
	}
}

// Why a worker has ended, or has not begun, is one line of its log, in the log's format.
func TestWorkerEndsInLog(t *testing.T) {
	t.Parallel()
	const key = "USERPILOT_API_KEY=k"
	for _, test := range []struct{ env, args, want string }{
		{"", "work --log-format json", "set USERPILOT_API_KEY"},
		{`USERPILOT_API_KEY="k"`, "up --log-format json", "USERPILOT_API_KEY: API key: is in quotes"},
		{key, "work --log-format json --nats-url 127.0.0.1:1 --wait 0 --listen 127.0.0.1:0", "connect to NATS at nats://127.0.0.1:1: "},
		{key + ",IDENTIFY_BURST=many,IDENTIFY_LOG_FORMAT=json", "work", "IDENTIFY_BURST: must be "},
		{key, "work --log-format json --rate many", "--rate: must be calls/window"},
	} {
		env := map[string]string{}
		for pair := range strings.SplitSeq(test.env, ",") {
			name, text, _ := strings.Cut(pair, "=")
			env[name] = text
		}
		var stderr strings.Builder
		status := run(t.Context(), strings.Fields(test.args), strings.NewReader(""), io.Discard, &stderr, func(name string) string { return env[name] })
		last := strings.LastIndex(strings.TrimSpace(stderr.String()), "\n") + 1
		var line struct{ Level, Msg, Error string }
		if err := json.Unmarshal([]byte(stderr.String()[last:]), &line); err != nil || status == 0 || line.Level != "ERROR" || line.Msg != "the worker has ended" || !strings.Contains(line.Error, test.want) {
			t.Errorf("%s %s: status %d, stderr %q; want %q (%v)", test.env, test.args, status, stderr.String(), test.want, err)
		}
	}
}
