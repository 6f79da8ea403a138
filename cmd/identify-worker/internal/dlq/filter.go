package dlq

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// envPrefix begins the environment variables of dlq's own flags. Other commands have a --rate and
// a --wait that mean something else, and a variable must not set a filter by accident.
const envPrefix = "DLQ_"

// letterFilter has the values of the filter flags.
type letterFilter struct {
	filter inspector.Filter // all but Match
	match  *jq
	text   string // of match
	words  string // of match, for the history
}

// newLetterFilter adds the filter flags.
func newLetterFilter(cmd *cobra.Command) *letterFilter {
	f := flags.Set{Cmd: cmd, Prefix: envPrefix}
	l := &letterFilter{}
	f.Add(list[string]{&l.filter.Groups, "group", parseGroups}, "group", "`fingerprint` of its group, as shown by stats")
	f.Add(list[deadletter.Reason]{&l.filter.Reasons, "reason", parseReasons}, "reason", "`reason` of its death: "+strings.Join(reasons(), ", "))
	f.Add(list[int]{&l.filter.Statuses, "status", parseStatuses}, "status", "`status` of Userpilot's answer; 0 means no answer")
	f.Add(list[string]{&l.filter.Users, "id", parseUser}, "user", "the user's `id`")
	f.Add(list[uint64]{&l.filter.IDs, "number", parseIDs}, "id", "`number` of the dead letter, as shown by ls")
	moment(f, &l.filter.Since, "since", "died at or after this `time`: 2026-01-02T15:04:05Z, 2026-01-02, or an age such as 2h")
	moment(f, &l.filter.Until, "until", "died before this `time`")
	f.Add(flags.NewValue(&l.text, "jq", l.parseMatch, func(text string) string { return text }), "match", "jq `expression` over {headers, event} that must be true")
	return l
}

// take adds the numbers of dead letters that are given as arguments.
func (l *letterFilter) take(args []string) error {
	for _, arg := range args {
		id, ok := parseID(arg)
		if !ok {
			return flags.Usagef("%q: must be the number of a dead letter, as shown by identify-worker dlq ls", arg)
		}
		l.filter.IDs = append(l.filter.IDs, id)
	}
	return nil
}

// noMatch is the error of a command for which the filter selects nothing.
func noMatch(f inspector.Filter) error {
	if only := (inspector.Filter{IDs: f.IDs}); !only.IsZero() && only.String() == f.String() {
		return inspector.ErrNoDeadLetter
	}
	return errors.New("no dead letters match")
}

func (l *letterFilter) parseMatch(text string) (string, error) {
	match, err := compileJQ(text)
	if err != nil {
		return "", err
	}
	l.match, l.words = match, withoutValues(text)
	return text, nil
}

// query returns the filter for a command that ends with ctx.
func (l *letterFilter) query(ctx context.Context, reveal bool) (inspector.Filter, error) {
	f := l.filter
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return f, flags.Usagef("--until: must be after --since")
	}
	if l.match != nil {
		f.Match = l.match.matcher(ctx, reveal)
	}
	return f, nil
}

// list is a flag that may be given several times.
type list[T any] struct {
	target *[]T
	kind   string
	parse  func(string) ([]T, error)
}

func (l list[T]) Type() string { return l.kind }
func (list[T]) String() string { return "" }

func (l list[T]) Set(text string) error {
	parsed, err := l.parse(text)
	if err != nil {
		return err
	}
	*l.target = append(*l.target, parsed...)
	return nil
}

// each reads values that are separated by commas.
func each[T any](text string, parse func(string) (T, bool), must string) ([]T, error) {
	var all []T
	for part := range strings.SplitSeq(text, ",") {
		one, ok := parse(strings.TrimSpace(part))
		if !ok {
			return nil, errors.New(must)
		}
		all = append(all, one)
	}
	return all, nil
}

var groupForm = regexp.MustCompile(`^[0-9a-f]+$`)

func parseGroups(text string) ([]string, error) {
	return each(strings.ToLower(text), func(part string) (string, bool) { return part, groupForm.MatchString(part) },
		"must be a fingerprint as shown by stats")
}

func reasons() (names []string) {
	for _, r := range deadletter.Reasons() {
		names = append(names, string(r))
	}
	return names
}

func parseReasons(text string) ([]deadletter.Reason, error) {
	return each(text, func(part string) (deadletter.Reason, bool) {
		return deadletter.Reason(part), slices.Contains(deadletter.Reasons(), deadletter.Reason(part))
	}, "must be "+flags.OneOf(reasons()))
}

func parseStatuses(text string) ([]int, error) {
	return each(text, func(part string) (int, bool) {
		n, err := strconv.Atoi(part)
		return n, err == nil && (n == 0 || n >= 100 && n <= 999)
	}, "must be a status such as 422, or 0 for none")
}

// parseUser does not split at commas: an id may contain them.
func parseUser(text string) ([]string, error) {
	if text == "" {
		return nil, errors.New("must be a user's id")
	}
	return []string{text}, nil
}

func parseIDs(text string) ([]uint64, error) {
	return each(text, parseID, "must be a number as shown by ls")
}

func parseID(text string) (uint64, bool) {
	id, err := strconv.ParseUint(text, 10, 64)
	return id, err == nil && id > 0
}

// moment adds a flag for a time. It may also be given as an age, which is how long ago the time
// was.
func moment(f flags.Set, target *time.Time, name, usage string) {
	parse := func(text string) (time.Time, error) { return parseMoment(text, time.Now()) }
	format := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.Format(time.RFC3339)
	}
	f.Add(flags.NewValue(target, "time", parse, format), name, usage)
}

func parseMoment(text string, now time.Time) (time.Time, error) {
	if age, ok := parseAge(text); ok {
		return now.Add(-age), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil { // UTC where it does not say
			return t, nil
		}
	}
	return time.Time{}, errors.New("must be a time such as 2026-01-02T15:04:05Z, 2026-01-02 15:04 or 2026-01-02, in UTC unless it names another zone, or an age such as 90s, 2h, 3d or 1d12h")
}

// parseAge reads a duration that may begin with days.
func parseAge(text string) (age time.Duration, ok bool) {
	if text == "" || text[0] < '0' || text[0] > '9' { // no sign
		return 0, false
	}
	rest := text
	if days, after, found := strings.Cut(text, "d"); found {
		n, err := strconv.Atoi(days)
		if err != nil || n > 36_500 {
			return 0, false
		}
		age, rest = time.Duration(n)*24*time.Hour, after
		if rest == "" {
			return age, true
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || rest == "0" && age == 0 {
		return 0, false
	}
	return age + d, true
}
