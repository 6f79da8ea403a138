//go:build !noembed

package cli

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// runbookCommands are the command lines of this program that the runbook says to type, without
// the program's name.
func runbookCommands(t *testing.T) [][]string {
	t.Helper()
	text, err := os.ReadFile("../../../../deployments/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(block[1]) {
			words := shellWords(line)
			if len(words) == 0 || words[0] == "nats" {
				continue
			}
			if words[0] != "identify-worker" {
				t.Errorf("the runbook says to type %q, which nobody tests", line)
			}
			all = append(all, words[1:])
		}
	}
	if len(all) < 30 {
		t.Fatalf("only %d commands are found", len(all))
	}
	return all
}

var shellWord = regexp.MustCompile(`"([^"]*)"|>\s*\S+|[^\s"]+`)

// shellWords are the words of a line as a shell takes them, but for what it redirects.
func shellWords(line string) (words []string) {
	for _, w := range shellWord.FindAllStringSubmatch(strings.TrimSpace(line), -1) {
		if !strings.HasPrefix(w[0], ">") {
			words = append(words, strings.Trim(w[0], `"`))
		}
	}
	return words
}

// fill replaces the words that are the reader's own.
func fill(words []string, group string) []string {
	words = slices.Clone(words)
	for i, w := range words {
		switch w {
		case "GROUP":
			words[i] = group
		case "USER_ID":
			words[i] = "erased"
		case "users.csv":
			words[i] = filepath.Join("testdata", w)
		}
	}
	return words
}

// Each command exists and takes these flags.
func TestRunbookCommandsAreRight(t *testing.T) {
	t.Parallel()
	for _, words := range runbookCommands(t) {
		root := newRoot(&flags.Env{Getenv: func(string) string { return "" }}, new(bool))
		cmd, rest, err := root.Find(fill(words, "4be1d07a"))
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err == nil && cmd == root {
			err = http.ErrNotSupported
		}
		if err != nil {
			t.Errorf("identify-worker %s: %v", strings.Join(words, " "), err)
		}
	}
}

// Each problem that status names has its section, and no other has one there.
func TestRunbookKnowsProblems(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("../health/problem.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../../../deployments/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(text), "\n## What status says\n")
	part, _, _ = strings.Cut(part, "\n## ")
	named := slices.Compact(names(regexp.MustCompile(`\badd\("(\w+)"`), string(source)))
	described := names(regexp.MustCompile(`(?m)^### (\w+)$`), part)
	if len(named) < 9 || !slices.Equal(named, described) {
		t.Errorf("status names %v, the runbook has %v", named, described)
	}
}

// Each reason of a hold has a line in its section, and no other has one.
func TestRunbookKnowsHolds(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("../../../../worker/verdict.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../../../deployments/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rules, _ := strings.Cut(string(source), "\nfunc rules(")
	rules, _, _ = strings.Cut(rules, "\n}\n")
	_, part, _ := strings.Cut(string(text), "\n### IdentifyHold\n")
	part, _, _ = strings.Cut(part, "\n### ")
	reasons := strings.Join(regexp.MustCompile("(?m)^\\| `.*?\\|").FindAllString(part, -1), "\n")
	known := slices.Compact(names(regexp.MustCompile(`\{reason: "(\w+)"`), rules))
	described := names(regexp.MustCompile("`(\\w+)`"), reasons)
	if len(known) < 5 || !slices.Equal(known, described) {
		t.Errorf("a replica holds for %v, the runbook has %v", known, described)
	}
}

// names are what a pattern's group matches, sorted.
func names(pattern *regexp.Regexp, text string) (all []string) {
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return all
}

// drill is a pipeline in which the runbook's commands are typed.
type drill struct {
	t   *testing.T
	api *userpilottest.Server
	env map[string]string
	up  *process
}

// sick is the user whose events die until the API is mended.
const sick = "sick"

func startDrill(t *testing.T) *drill {
	t.Helper()
	d := &drill{t: t, api: userpilottest.New(userpilottest.Options{Key: "right"})}
	if err := d.api.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.api.Close)
	d.env = map[string]string{
		"USERPILOT_API_KEY": "right", "USERPILOT_ENDPOINT": d.api.URL(), "IDENTIFY_RATE": "0", "IDENTIFY_LISTEN": "127.0.0.1:0",
		"IDENTIFY_NATS_LISTEN": "127.0.0.1:0", "IDENTIFY_STORE": t.TempDir(), "IDENTIFY_DLQ_YES": "true",
	}
	ctx, cancel := context.WithCancel(t.Context())
	progress := make(chan struct{}, 1)
	d.up = &process{cancel: cancel, ended: make(chan struct{}), anyProgress: progress}
	d.up.out.changed, d.up.err.changed = progress, progress
	env := maps.Clone(d.env)
	go func() {
		defer close(d.up.ended)
		d.up.status = run(ctx, []string{"up"}, strings.NewReader(""), &d.up.out, &d.up.err, func(name string) string { return env[name] })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-d.up.ended:
		case <-time.After(patience):
			t.Errorf("up does not end: %s", d.up.err.String())
		}
	})
	url := regexp.MustCompile(`nats://[\d.:]+`)
	for late := time.After(patience); url.FindString(d.up.err.String()) == ""; {
		select {
		case <-progress:
		case <-late:
			t.Fatalf("up does not say where it listens: %s", d.up.err.String())
		case <-d.up.ended:
			t.Fatalf("up ended: %s", d.up.err.String())
		}
	}
	d.env["NATS_URL"] = url.FindString(d.up.err.String())
	return d
}

func (d *drill) getenv(name string) string { return d.env[name] }

// types runs one command to its end and returns what it prints. The dead letters here are younger
// than some that the runbook speaks of.
func (d *drill) types(stdin string, words ...string) string {
	d.t.Helper()
	var stdout, stderr strings.Builder
	status := run(d.t.Context(), words, strings.NewReader(stdin), &stdout, &stderr, d.getenv)
	if young := slices.Contains(words, "20d") && stderr.String() == "identify-worker: no dead letters match\n"; status != exitDone && !young {
		d.t.Errorf("identify-worker %s: status %d: %s%s", strings.Join(words, " "), status, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// deadLetter returns the group of a dead letter, after it has seen to it that there is one. From then on
// its event would be taken.
func (d *drill) deadLetter() (group string) {
	d.t.Helper()
	d.api.SetFaults(func(r userpilottest.Request) userpilottest.Fault {
		if r.User == sick {
			return userpilottest.Fault{Status: http.StatusUnprocessableEntity}
		}
		return userpilottest.Fault{}
	})
	defer d.api.SetFaults(nil)
	for published := false; ; {
		var groups []struct{ Group string }
		text := d.types("", "dlq", "stats", "--json", "--status", "422")
		if err := json.Unmarshal([]byte(text), &groups); err != nil {
			d.t.Fatalf("dlq stats: %v: %s", err, text)
		}
		if len(groups) > 0 {
			return groups[0].Group
		}
		if !published {
			published = true
			d.types(`{"user_id":"`+sick+`","metadata":{"plan":"gold"}}`, "publish")
		}
	}
}

// Each command of the runbook that ends by itself does what it is for, in the order of the text.
// What changes the number of partitions comes last: it ends the worker.
func TestRunbookCommandsWork(t *testing.T) {
	t.Parallel()
	d := startDrill(t)
	ran := map[string]bool{}
	for _, words := range runbookCommands(t) {
		line := strings.Join(words, " ")
		// Partitions do not change while a worker runs: see the script setup.
		if ran[line] || words[0] == "work" || slices.Contains(words, "--watch") || slices.Contains(words, "--partitions") {
			continue
		}
		ran[line] = true
		group := d.deadLetter()
		d.types("", fill(words, group)...)
		if t.Failed() {
			t.Fatalf("the worker said:\n%s", d.up.err.String())
		}
	}
}
