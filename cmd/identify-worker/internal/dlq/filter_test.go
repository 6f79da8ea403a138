package dlq

import (
	"reflect"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

func TestMoment(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"90s": "2026-03-04T11:58:30Z", "2h": "2026-03-04T10:00:00Z", "1h30m": "2026-03-04T10:30:00Z", "0s": "2026-03-04T12:00:00Z",
		"3d": "2026-03-01T12:00:00Z", "1d12h": "2026-03-03T00:00:00Z", "36500d": "1926-03-29T12:00:00Z",
		"2026-03-01": "2026-03-01T00:00:00Z", "2026-03-01 15:04": "2026-03-01T15:04:00Z", "2026-03-01T15:04": "2026-03-01T15:04:00Z",
		"2026-03-01 15:04:05": "2026-03-01T15:04:05Z", "2026-03-01T15:04:05": "2026-03-01T15:04:05Z",
		"2026-03-01T15:04:05.123456789Z": "2026-03-01T15:04:05.123456789Z", "2026-03-01T15:04:05+02:00": "2026-03-01T13:04:05Z",
		"": "", "0": "", "-2h": "", "+2h": "", "2": "", "2 h": "", "d": "", "1.5d": "", "36501d": "", "1d-2h": "", "1d1d": "", "d2h": "",
		"yesterday": "", "15:04": "", "2026-13-01": "", "2026-03-01T25:00": "",
	} {
		got, err := parseMoment(text, now)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q is read as %s", text, got)
		case want != "" && (err != nil || got.UTC().Format(time.RFC3339Nano) != want):
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
}

func TestFilterFlags(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		want inspector.Filter
	}{
		"nothing": {nil, inspector.Filter{}},
		"all of them": {
			[]string{"--group", "AB12,cd34", "--group=ef", "--reason", "rejected", "--reason", "invalid, panic", "--status", "422,0", "--user", "a,b", "--user", "c",
				"--id", "1,2", "--id", "3", "--since", "2026-01-02", "--until", "2026-01-03"},
			inspector.Filter{
				Groups: []string{"ab12", "cd34", "ef"}, Reasons: []deadletter.Reason{deadletter.Rejected, deadletter.Invalid, deadletter.Panicked}, Statuses: []int{422, 0},
				Users: []string{"a,b", "c"}, IDs: []uint64{1, 2, 3},
				Since: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Until: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC),
			},
		},
	} {
		cmd := &cobra.Command{}
		l := newLetterFilter(cmd)
		if err := cmd.ParseFlags(test.args); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got, err := l.query(t.Context(), false)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
	}
}

func TestBadFilterFlags(t *testing.T) {
	t.Parallel()
	for flag, texts := range map[string][]string{
		"group": {"", "xyz", "ab,"}, "reason": {"", "rejecte", "rejected,"}, "status": {"", "4xx", "1", "-1", "1000"}, "user": {""},
		"id": {"", "0", "-1", "x", "1,", "1-2"}, "since": {"", "soon"}, "match": {".a +", "nothere", "$x", `include "x"; .`, "input"},
	} {
		for _, text := range texts {
			cmd := &cobra.Command{}
			newLetterFilter(cmd)
			if err := cmd.ParseFlags([]string{"--" + flag, text}); err == nil {
				t.Errorf("--%s %q is taken", flag, text)
			}
		}
	}
}
