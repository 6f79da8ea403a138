package worker_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// TestVerdicts plays testdata/verdicts.txt, which says what becomes of events and what operators are
// told, for each answer: to whom it is given, and for how long.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	sections, rows := readVerdicts(t), 0
	for _, section := range sections {
		rows += len(section.rows)
		t.Run(section.name, func(t *testing.T) {
			t.Parallel()
			simulate(t, userpilottest.Options{Latency: 20 * time.Millisecond}, func(t *testing.T, s *sim) {
				r := s.start(func(c *worker.Config) {
					littleMemory(c)
					c.MaxAttempts, c.BackoffMax, c.Timeout = 5, 10*time.Second, 5*time.Second
				})
				for _, row := range section.rows {
					row.play(s, r)
				}
				r.stop()
			})
		})
	}
	if rows < 120 {
		t.Errorf("%d rows", rows)
	}
}

// verdictSection holds rows that are played one after another, by one server and one worker.
type verdictSection struct {
	name string
	rows []verdictRow
}

// verdictRow is one row of the table.
type verdictRow struct {
	name  string
	steps []verdictStep
	want  map[string]string // odd, others, stop, told
}

// verdictStep is one answer: to one user, three or all, for a while.
type verdictStep struct {
	fault userpilottest.Fault
	whom  string
	lasts time.Duration
}

const (
	// span is how long a row is played.
	span = 150 * time.Second
	// ever is how long a step lasts that ends with its row.
	ever = time.Hour
)

func readVerdicts(t *testing.T) (sections []*verdictSection) {
	t.Helper()
	file, err := os.Open("testdata/verdicts.txt")
	must(t, err)
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if title, found := strings.CutPrefix(line, "== "); found {
			title, _, _ = strings.Cut(title, ":")
			sections = append(sections, &verdictSection{name: strings.TrimSpace(title)})
			continue
		}
		answers, wants, ok := strings.Cut(line, "->")
		if strings.TrimSpace(line) == "" {
			continue
		}
		want := strings.Fields(wants)
		if !ok || len(want) != 4 {
			t.Fatalf("line %d: not a row: %s", n, line)
		}
		for _, steps := range expand(answers) {
			row := verdictRow{name: strings.Join(steps, ", then "), want: map[string]string{"odd": want[0], "others": want[1], "stop": want[2], "told": want[3]}}
			for _, step := range steps {
				parsed, err := parseStep(step)
				if err != nil {
					t.Fatalf("line %d: %s: %v", n, step, err)
				}
				row.steps = append(row.steps, parsed)
			}
			section := sections[len(sections)-1]
			section.rows = append(section.rows, row)
		}
	}
	must(t, lines.Err())
	return sections
}

// expand expands the lists in the first step's status and body.
func expand(answers string) (all [][]string) {
	steps := strings.Split(answers, ";")
	for i := range steps {
		steps[i] = strings.Join(strings.Fields(steps[i]), " ")
	}
	first := strings.Fields(steps[0])
	for status := range strings.SplitSeq(first[0], ",") {
		for body := range strings.SplitSeq(first[1], ",") {
			one := strings.Join(append([]string{status, body}, first[2:]...), " ")
			all = append(all, append([]string{one}, steps[1:]...))
		}
	}
	return all
}

func parseStep(text string) (s verdictStep, err error) {
	fields := strings.Fields(text)
	if len(fields) != 4 {
		return s, fmt.Errorf("has %d fields, want an answer, its body, to whom and how long", len(fields))
	}
	s.whom, s.lasts = fields[2], ever
	if fields[3] != "ever" {
		if s.lasts, err = time.ParseDuration(fields[3]); err != nil {
			return s, err
		}
	}
	answer, after, ok := strings.Cut(fields[0], "/")
	if ok {
		if s.fault.RetryAfter, err = time.ParseDuration(after); err != nil {
			return s, err
		}
	}
	switch answer {
	case "cut":
		s.fault.Cut = true
	case "lost":
		s.fault.CutAfterApply = true
	case "late":
		s.fault.Delay = 30 * time.Second
	case "slow":
		s.fault.Delay = 2 * time.Second
	default:
		if s.fault.Status, err = strconv.Atoi(answer); err != nil {
			return s, err
		}
	}
	err = s.setBody(fields[1])
	return s, err
}

func (s *verdictStep) setBody(kind string) error {
	switch kind {
	case "json", "-": // the documented error, or nothing with a 2xx
	case "html":
		s.fault.HTML, s.fault.Instead = true, true
	case "text":
		s.fault.Body = []byte("no")
	case "empty":
		s.fault.Body = []byte{}
	case "problem":
		s.fault.Body = []byte(`{"title":"Forbidden","detail":"This is not allowed."}`)
	case "endless":
		s.fault.Endless = true
	case "trickle":
		s.fault.Trickle = 100 * time.Millisecond
	case "cut":
		s.fault.CutBody = true
	default:
		return fmt.Errorf("unknown body %q", kind)
	}
	return nil
}

// meets reports whether a user gets the step's answer.
func (s verdictStep) meets(user string) bool {
	kind, _, _ := strings.Cut(user, "-")
	switch s.whom {
	case "one":
		return kind == "odd"
	case "three":
		return strings.HasPrefix(kind, "odd")
	}
	return true
}

// verdictRun observes one row.
type verdictRun struct {
	*sim
	row       verdictRow
	begun     time.Time
	odd       []string               // users
	published map[string][]time.Time // the others' events
	next      map[string]int         // number of each user's next event
	told      string                 // how an operator was told
	first     int                    // of the row's calls
	logged    int                    // length of the log before the row
}

// toldAfter is when an operator is asked what he was told.
const toldAfter = 100 * time.Second

// endless reports whether the last answer does not change.
func (row verdictRow) endless() bool { return row.steps[len(row.steps)-1].lasts == ever }

// meets reports whether the row wants this.
func (row verdictRow) meets(what, got string) bool {
	want := row.want[what]
	least, more := strings.CutSuffix(want, "+")
	return want == got || more && slices.Contains(strings.Split(got, "+"), least)
}

func (row verdictRow) play(s *sim, w *replica) {
	name := strings.Map(func(r rune) rune {
		if r == ' ' || r == ',' {
			return '_'
		}
		return r
	}, row.name)
	r := &verdictRun{
		sim: s, row: row, published: map[string][]time.Time{}, next: map[string]int{},
		odd: []string{"odd-" + name, "odd2-" + name, "odd3-" + name}, first: len(s.api.Calls()), logged: len(s.logs.String()),
	}
	for i := range 4 {
		r.published[fmt.Sprintf("other%d-%s", i, name)] = nil
	}
	r.publishOthers()
	time.Sleep(time.Second)
	r.begun = time.Now()
	s.api.SetFaults(r.fault)
	for range 3 {
		for _, user := range r.odd[:r.odds()] {
			r.publishNext(user)
		}
	}
	r.watch(w)
	got := map[string]string{"odd": r.fate(r.odd[0]), "others": r.others(), "stop": r.stopped(), "told": r.told}
	s.api.SetFaults(nil)
	s.drain(5 * time.Minute)
	for what, want := range row.want {
		if !row.meets(what, got[what]) {
			s.t.Errorf("%s: %s: %s, want %s", row.name, what, got[what], want)
		}
	}
	r.checkOrder()
}

// odds returns how many users are not among the others.
func (r *verdictRun) odds() int {
	for _, step := range r.row.steps {
		if step.whom == "three" {
			return len(r.odd)
		}
	}
	return 1
}

// publishNext publishes the user's next event.
func (r *verdictRun) publishNext(user string) {
	r.next[user]++
	body := fmt.Sprintf(`{"user_id":%q,"metadata":{"n":%d}}`, user, r.next[user])
	_, err := r.publisher.Publish(r.t.Context(), []byte(body))
	must(r.t, err)
}

// fault gives each call the answer of the step that it falls into.
func (r *verdictRun) fault(q userpilottest.Request) userpilottest.Fault {
	since := q.Time.Sub(r.begun)
	for _, step := range r.row.steps {
		if since >= 0 && since < step.lasts {
			if step.meets(q.User) {
				return step.fault
			}
			break
		}
		since -= step.lasts
	}
	return userpilottest.Fault{}
}

// publishOthers publishes an event of each other user.
func (r *verdictRun) publishOthers() {
	for _, user := range slices.Sorted(maps.Keys(r.published)) {
		r.published[user] = append(r.published[user], time.Now())
		r.publishNext(user)
		time.Sleep(time.Second)
	}
}

// watch lets the others publish until the row's end, and asks the replica what is wrong. Users whose calls
// always fail are told of while they have attempts left, and how long that is depends on how many of their
// events are merged: so what does not change is asked for again, for as long as three rows take.
func (r *verdictRun) watch(w *replica) {
	settled := func() bool { return !r.row.endless() || r.row.meets("told", r.told) }
	for time.Since(r.begun) < span || !settled() && time.Since(r.begun) < 3*span {
		r.publishOthers()
		if time.Since(r.begun) >= toldAfter && (r.told == "" || !settled()) {
			r.told = operatorHears(w)
		}
		time.Sleep(6 * time.Second)
	}
}

// operatorHears is how an operator is told of what is wrong, if he asks now. Just after the others' calls that
// does not depend on chance: at other moments a single user whose answers stop all calls may have had
// two of them since the last success, or only one, as its backoff has it.
func operatorHears(w *replica) string {
	switch {
	case w.Ready() != nil:
		return "not-ready"
	case trouble(w.Snapshot()) != "":
		return "warning"
	}
	return "-"
}

// accepted reports whether Userpilot accepted a call and said so.
func accepted(c userpilottest.Call) bool { return c.Applied && c.Status/100 == 2 }

// callsOf returns the row's calls for a user.
func (r *verdictRun) callsOf(user string) (calls []userpilottest.Call) {
	for _, c := range r.api.Calls()[r.first:] {
		if c.User == user {
			calls = append(calls, c)
		}
	}
	return calls
}

// fate tells what became of a user's events.
func (r *verdictRun) fate(user string) string {
	fates := map[string]bool{}
	for _, m := range r.dead() {
		if m.Header.Get("Dead-User") == user {
			fates[m.Header.Get("Dead-Reason")] = true
		}
	}
	if len(fates) > 0 {
		return strings.Join(slices.Sorted(maps.Keys(fates)), "+")
	}
	if slices.ContainsFunc(r.callsOf(user), accepted) {
		return "delivered"
	}
	return "waiting"
}

// others tells whether the other users' events were delivered promptly.
func (r *verdictRun) others() string {
	worst := time.Duration(0)
	for user, times := range r.published {
		if fate := r.fate(user); fate != "delivered" {
			return fate
		}
		calls := r.callsOf(user)
		for _, at := range times {
			i := slices.IndexFunc(calls, func(c userpilottest.Call) bool { return !c.Time.Before(at) && accepted(c) })
			if i < 0 {
				return "waiting"
			}
			worst = max(worst, calls[i].Time.Sub(at))
		}
	}
	if worst < 3*time.Second {
		return "prompt"
	}
	return "late"
}

// stopped lists why calls were stopped, as the log says.
func (r *verdictRun) stopped() string {
	reasons := map[string]bool{}
	for line := range strings.Lines(r.logs.String()[r.logged:]) {
		switch {
		case strings.Contains(line, "on hold"):
			_, reason, _ := strings.Cut(line, " reason=")
			reason, _, _ = strings.Cut(reason, " ")
			reasons[reason] = true
		case strings.Contains(line, "seems to be down"):
			reasons["outage"] = true
		case strings.Contains(line, "cooldown (429)"):
			reasons["cooldown"] = true
		}
	}
	if len(reasons) == 0 {
		return "-"
	}
	return strings.Join(slices.Sorted(maps.Keys(reasons)), "+")
}

// checkOrder checks that no user was set back. Only a call that was applied without an answer may
// be halved in the end, as a last resort.
func (r *verdictRun) checkOrder() {
	newest := map[string]int{}
	for _, c := range r.api.Calls()[r.first:] {
		var event struct{ Metadata struct{ N int } }
		must(r.t, json.Unmarshal(c.Body, &event))
		n := event.Metadata.N
		if c.Applied && n < newest[c.User] && !slices.ContainsFunc(r.row.steps, func(s verdictStep) bool { return s.fault.CutAfterApply }) {
			r.t.Errorf("%s: %s was set back from event %d to %d", r.row.name, c.User, newest[c.User], n)
		}
		if c.Applied {
			newest[c.User] = n
		}
	}
}
