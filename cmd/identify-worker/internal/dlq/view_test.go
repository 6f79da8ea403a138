package dlq

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// hostile is text as it may stand in anything that others have written.
const hostile = "\x1b[2J\x1b]0;x\x07a\r\nb\u202e\u009b\xff\x00"

// hostileLetter has it everywhere, and more of it than any header can hold.
func hostileLetter(body string) *deadletter.Letter {
	long := hostile + strings.Repeat("y\x1b", 4<<10)
	return &deadletter.Letter{
		ID: 1, Death: deadletter.Death{Reason: deadletter.Reason(long), Status: 422, Code: long, Error: long, RequestID: long, User: long},
		Partition: long, History: []string{long, hostile}, Header: map[string][]string{hostile: {long}}, Body: []byte(body),
	}
}

// Whatever a dead letter holds, a terminal is shown lines of printable characters, and few.
func TestHostileLettersAreHarmless(t *testing.T) {
	t.Parallel()
	bodies := map[string]string{
		"not JSON": hostile + strings.Repeat("\x1b", 1<<16),
		"JSON":     `{"user_id":"` + strings.Repeat("\u202e", 1<<16) + `","\u001b[2J":{"\u009b":["` + strings.Repeat("z\u009b", 1<<16) + `"]}}`,
	}
	for name, body := range bodies {
		for _, reveal := range []bool{false, true} {
			l := letterWithNewer{hostileLetter(body), deadletter.Supersession{Known: true, Partly: true, Properties: []deadletter.PropertyStanding{{Path: "/metadata/" + hostile, Superseded: true}}}}
			var screen strings.Builder
			list := &letterList{out: &screen, mask: newMask(reveal, false)}
			story := &detail{out: &screen, mask: newMask(reveal, false)}
			err := errors.Join(
				list.print(newLetterView(l, list.mask)), list.table.Flush(),
				story.print(l.Body, story.view(l)),
				printGroups(&screen, newGroupViews([]inspector.Group{{ID: "4f5872fa", Reason: hostile, Error: l.Error}}, time.Now(), list.mask)),
				printHistory(&screen, []inspector.Action{{
					Run: hostile, Kind: hostile, By: l.Error, Host: hostile, Selection: l.Error, Edit: hostile, Note: hostile,
					Counts: map[string]uint64{hostile: 1}, Outcome: hostile,
				}}, list.mask, false),
			)
			plan := &replayPlan{selection: &inspector.Selection{
				Letters: 1, Groups: []inspector.GroupCount{{Group: "4f5872fa", Reason: hostile, Error: l.Error, Count: 1}}, Skips: map[string]uint64{l.Error: 1},
			}}
			plan.print(&screen, list.mask)
			printEdits(&screen, []inspector.Edited{{ID: 1, Before: []byte("{}"), After: []byte(bodies["JSON"])}}, list.mask)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.SplitSeq(screen.String(), "\n") {
				if !isVisible(line) || len(line) > 20_000 {
					t.Errorf("%s, reveal %v: %.1000q", name, reveal, line)
				}
			}
			if n := strings.Count(screen.String(), "\n"); n > 60 || screen.Len() > 100_000 {
				t.Errorf("%s, reveal %v: %d lines, %d bytes", name, reveal, n, screen.Len())
			}
		}
	}
}

// In JSON it is whole, and as harmless.
func TestHostileLettersForScripts(t *testing.T) {
	t.Parallel()
	l := letterWithNewer{Letter: hostileLetter(`{"a":"\u001b\u202e"}`)}
	for _, reveal := range []bool{false, true} {
		var out strings.Builder
		m := newMask(reveal, true)
		s := &detail{out: &out, mask: m, json: true}
		err := errors.Join(
			render.JSON(&out, newLetterView(l, m), ""), s.printJSON(l.Body, s.view(l)),
			printHistory(&out, []inspector.Action{{Run: hostile, Kind: hostile, Note: hostile, Counts: map[string]uint64{hostile: 1}}}, m, true),
		)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 3 {
			t.Fatalf("%d lines", len(lines))
		}
		for _, line := range lines {
			value, err := decodeJSON([]byte(line))
			if err != nil || !isVisible(line) {
				t.Errorf("%.300q: %v", line, err)
			}
			if object := value.(map[string]any); reveal && object["user"] != nil && object["user"] != strings.ToValidUTF8(l.User, "\ufffd") {
				t.Errorf("the user is %.100q", object["user"])
			}
		}
	}
}

func TestShowWhatIsNotJSON(t *testing.T) {
	t.Parallel()
	for reveal, want := range map[bool]string{
		true:  "event, 13 bytes, not JSON\nann@x.org\\n\\x1b[0\n",
		false: "event, 13 bytes, not JSON: --reveal shows it\n\npersonal data is masked; --reveal shows it\n",
	} {
		var out strings.Builder
		s := &detail{out: &out, mask: newMask(reveal, false)}
		l := letterWithNewer{Letter: &deadletter.Letter{Body: []byte("ann@x.org\n\x1b[0")}}
		if err := s.print(l.Body, s.view(l)); err != nil {
			t.Fatal(err)
		}
		if _, got, _ := strings.Cut(out.String(), "\n\nevent"); "event"+got != want {
			t.Errorf("reveal %v: %q, want %q", reveal, "event"+got, want)
		}
	}
}

func TestDescribeNewer(t *testing.T) {
	t.Parallel()
	const event = `{"user_id":"ann","metadata":{"plan":"pro"}}`
	for name, test := range map[string]struct {
		body    string
		tracked bool
		newer   deadletter.Supersession
		want    string
	}{
		"none":       {event, true, deadletter.Supersession{Known: true}, "none since"},
		"some":       {event, true, deadletter.Supersession{Known: true, Partly: true}, "has since set some of its properties: a replay does not touch those"},
		"all":        {event, true, deadletter.Supersession{Known: true, Wholly: true}, "has since set all of its properties: a replay makes no call"},
		"untracked":  {event, false, deadletter.Supersession{}, "unknown: there is no version record"},
		"forgotten":  {event, true, deadletter.Supersession{}, "unknown: a replay becomes a dead letter again, untracked, unless --force is given"},
		"unreadable": {"{", true, deadletter.Supersession{}, "unknown: the event is not a valid identify, body: is not JSON: it ends too early, after byte 1"},
	} {
		s := &detail{mask: newMask(false, false)}
		v := s.view(letterWithNewer{&deadletter.Letter{Tracked: test.tracked, Body: []byte(test.body)}, test.newer})
		if got := v.describeNewer([]byte(test.body)); got != test.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestProperty(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"": ".user_id", "/metadata/plan": ".metadata.plan", "/metadata": ".metadata", "/metadata/a b": `.metadata["a b"]`,
		"/metadata/a~1b~0c": `.metadata["a/b~c"]`, "/metadata/me@x.org": `.metadata["***"]`, "/metadata/sms_4915112345678": `.metadata["***"]`,
		"/company": ".company.id", "/company/acme/plan": ".company.plan", "/company/a~1b/plan": ".company.plan", "/other": ".other",
	} {
		if got := newMask(false, false).property(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		most          string
		replica       bool
		allowed, used float64
		want          string // for 60 events
	}{
		{"0", true, 600, 0, "what live events leave of 600 calls a minute: this takes 6s"},
		{"0", true, 600, 540, "what live events leave of 600 calls a minute: this takes 1m0s"},
		{"0", true, 600, 597, "what live events leave of 600 calls a minute, which live events all used in the last minute"},
		{"0", true, 600, 605, "what live events leave of 600 calls a minute, which live events all used in the last minute"},
		{"0", true, 0.1, 0, "what live events leave of 0.1 calls a minute: this takes 10h0m"},
		{"0", true, 7. / 3, 0, "what live events leave of 2.3 calls a minute: this takes 25m43s"},
		{"0", true, 1_200_000, 0, "what live events leave of 1,200,000 calls a minute: this takes 1s"},
		{"0", true, 0, 5000, "what live events leave, without a limit"},
		{"0", false, 0, 0, "what live events leave"},
		{"60/1m", true, 600, 100, "at most 60/1m of what live events leave of 600 calls a minute: this takes 1m0s"},
		{"60/1m", true, 600, 570, "at most 60/1m of what live events leave of 600 calls a minute: this takes 2m0s"},
		{"1/1s", true, 0, 5000, "at most 1/1s of what live events leave, without a limit: this takes 1m0s"},
		{"1/1s", false, 0, 0, "at most 1/1s of what live events leave: this takes 1m0s"},
	} {
		most, err := ratelimit.ParseRate(test.most)
		if err != nil {
			t.Fatal(err)
		}
		p := pace{most, test.replica, test.allowed, test.used}
		if got := p.describe(60); got != test.want {
			t.Errorf("%+v: %s\nwant %s", p, got, test.want)
		}
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	many := &inspector.Selection{
		Letters: 1234, Users: 1200, Oldest: at, Newest: at.Add(time.Hour), Exhausted: 30, Unsendable: 4,
		Skips: map[string]uint64{"user_id: is missing": 3, "edit: --edit fails on it": 1}, Superseded: 20, Partly: 5, Untracked: 7,
	}
	for i := range 12 {
		many.Groups = append(many.Groups, inspector.GroupCount{Group: "0000000" + string(rune('a'+i)), Reason: deadletter.Rejected, Status: 422, Error: `no plan "gold"`, Count: 100})
	}
	const groups = `1,234 dead letters of 1,200 users, died from 2026-01-02T03:04:05Z to 2026-01-02T04:04:05Z
  GROUP     COUNT  REASON    STATUS  ERROR
`
	one := func(group string) string { return "  " + group + "  100    rejected  422     no plan \"…\"\n" }
	var ten strings.Builder
	for i := range 10 {
		ten.WriteString(one("0000000" + string(rune('a'+i))))
	}
	for name, test := range map[string]struct {
		plan replayPlan
		want string
	}{
		"all of it": {replayPlan{selection: many, pace: pace{replica: true, allowed: 600, used: 540}, canary: 5, maxReplays: 3, replicas: 1}, `
replay      1,200, of which 5 first: if one of these dies again, the replay stops
rate        what live events leave of 600 calls a minute: this takes 20m0s
newer data  supersedes 20, which need no call, and 5 in part, whose newer properties are kept; unknown for 7, which have no version record
skip        30: already replayed 3 times, see --max-replays
skip        3: user_id: is missing
skip        1: edit: --edit fails on it
`},
		"by force": {replayPlan{selection: &inspector.Selection{Letters: 1, Exhausted: 1, Groups: many.Groups[:1]}, maxReplays: 1, canary: 1, force: true}, `
replay      0
rate        what live events leave
newer data  is overwritten because of --force
skip        1: already replayed once, see --max-replays
workers     none is running: replayed events will wait
`},
		"a canary of all": {replayPlan{selection: &inspector.Selection{Letters: 2, Groups: many.Groups[:1]}, canary: 9, replicas: -1}, `
replay      2, waiting for their outcomes
rate        what live events leave
newer data  none was delivered after they died
`},
	} {
		var out strings.Builder
		test.plan.print(&out, newMask(false, false))
		if _, got, _ := strings.Cut(out.String(), "\n\n"); "\n"+got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, test.want)
		}
		if name == "all of it" && !strings.HasPrefix(out.String(), groups+ten.String()+"  and 234 of other groups\n") {
			t.Errorf("%s", out.String())
		}
	}
}

func TestReplayEnds(t *testing.T) {
	t.Parallel()
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx    context.Context
		result inspector.ReplayResult
		err    error
		text   string
		end    string
	}{
		"done": {t.Context(), inspector.ReplayResult{Run: "r", Selected: 3, Replayed: 3, NotAwaited: 3}, nil, "replayed 3 of 3 dead letters (run r)\noutcomes: 3 not waited for\n", ""},
		"all kinds": {t.Context(), inspector.ReplayResult{Run: "r", Selected: 9, Replayed: 3, Already: 1, Gone: 2, Skipped: 1, Doubtful: 2, Delivered: 1, Superseded: 1, Purged: 1, Dead: 1, DiedAgain: []uint64{12}}, nil,
			"replayed 4 of 9 dead letters, 1 of them by an earlier run, 2 gone in the meantime, 1 skipped, 2 in doubt (run r)\noutcomes: 1 delivered, 1 superseded, 1 dead again, 1 purged; see identify-worker dlq show 12\n",
			"it is unknown whether 2 dead letters were replayed: run the command again, it is safe to repeat"},
		"some outcomes": {t.Context(), inspector.ReplayResult{Run: "r", Selected: 2000, Replayed: 2000, Delivered: 5, NotAwaited: 1995}, nil,
			"replayed 2,000 of 2,000 dead letters (run r)\noutcomes: 5 delivered, 0 superseded, 0 dead again, 1,995 not waited for\n", ""},
		"nothing": {t.Context(), inspector.ReplayResult{Run: "r", Selected: 2, Gone: 2}, nil, "replayed 0 of 2 dead letters, 2 gone in the meantime (run r)\n", ""},
		"interrupted": {interrupted, inspector.ReplayResult{Run: "r", Selected: 1000, Replayed: 300, Skipped: 1, NotAwaited: 300}, context.Canceled, "replayed 300 of 1,000 dead letters, 1 skipped (run r)\noutcomes: 300 not waited for\n",
			"stopped: 300 replayed, 699 not replayed; run the command again to continue"},
		"interrupted while waiting": {interrupted, inspector.ReplayResult{Run: "r", Selected: 3, Replayed: 2, Skipped: 1, Delivered: 1, NotAwaited: 1}, context.Canceled, "replayed 2 of 3 dead letters, 1 skipped (run r)\noutcomes: 1 delivered, 0 superseded, 0 dead again, 1 not waited for\n",
			"stopped: none is left to replay, but the outcomes of 1 are not known"},
		"interrupted at the end": {interrupted, inspector.ReplayResult{Run: "r", Selected: 1, Replayed: 1, Delivered: 1}, nil, "replayed 1 of 1 dead letter (run r)\noutcomes: 1 delivered, 0 superseded, 0 dead again\n", ""},
		"failed": {t.Context(), inspector.ReplayResult{Run: "r", Selected: 2, Replayed: 1, NotAwaited: 1}, errors.New("no stream"), "replayed 1 of 2 dead letters (run r)\noutcomes: 1 not waited for\n",
			"no stream; 1 replayed, 1 not replayed; run the command again to continue"},
		"canary": {t.Context(), inspector.ReplayResult{Run: "r", Selected: 2, Replayed: 1, Dead: 1}, inspector.ErrCanaryDied, "replayed 1 of 2 dead letters (run r)\noutcomes: 0 delivered, 0 superseded, 1 dead again\n",
			"the canary died again; nothing else was replayed"},
	} {
		v := newReplayView(&test.result)
		if got := v.describe(); got != test.text {
			t.Errorf("%s: %s, want %s", name, got, test.text)
		}
		end := ""
		if err := v.conclude(test.ctx, test.err); err != nil {
			end = err.Error()
		}
		if end != test.end {
			t.Errorf("%s ends with %q, want %q", name, end, test.end)
		}
	}
}
