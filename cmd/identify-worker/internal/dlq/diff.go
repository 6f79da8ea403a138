package dlq

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

// maxShownChanges is how many changes of one event are shown.
const maxShownChanges = 20

// difference is a change that an edit makes at one path. A value is absent if only one of the two
// events has the path.
type difference struct {
	path          string
	before, after any
	was, is       bool
}

// differences compares two JSON values, member by member, in the order of their names.
func (m *mask) differences(path string, before, after any) []difference {
	switch before := before.(type) {
	case map[string]any:
		if after, ok := after.(map[string]any); ok {
			return m.compareObjects(path, before, after)
		}
	case []any:
		if after, ok := after.([]any); ok {
			return m.compareArrays(path, before, after)
		}
	}
	if sameValue(before, after) {
		return nil
	}
	if path == "" {
		path = "."
	}
	return []difference{{path, before, after, true, true}}
}

func (m *mask) compareObjects(path string, before, after map[string]any) (all []difference) {
	names := slices.AppendSeq(slices.Collect(maps.Keys(before)), maps.Keys(after))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		was, isBefore := before[name]
		is, isAfter := after[name]
		at := path + m.step(name)
		if isBefore && isAfter {
			all = append(all, m.differences(at, was, is)...)
		} else {
			all = append(all, difference{at, was, is, isBefore, isAfter})
		}
	}
	return all
}

func (m *mask) compareArrays(path string, before, after []any) (all []difference) {
	for i := range max(len(before), len(after)) {
		at := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case i >= len(before):
			all = append(all, difference{path: at, after: after[i], is: true})
		case i >= len(after):
			all = append(all, difference{path: at, before: before[i], was: true})
		default:
			all = append(all, m.differences(at, before[i], after[i])...)
		}
	}
	return all
}

var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// step formats a member as part of a jq path.
func (m *mask) step(name string) string {
	if plainName.MatchString(name) {
		return "." + render.Truncate(name, render.MaxText)
	}
	return "[" + strconv.Quote(m.name(name)) + "]"
}

// sameValue compares values that are no containers. Numbers that are written differently are
// different: Userpilot gets them as they are written.
func sameValue(a, b any) bool {
	switch a.(type) {
	case map[string]any, []any:
		return false
	}
	switch b.(type) {
	case map[string]any, []any:
		return false
	}
	return fmt.Sprintf("%T %v", a, a) == fmt.Sprintf("%T %v", b, b)
}

// describe formats the difference as one line: changed, added or removed.
func (d difference) describe(m *mask) string {
	switch {
	case !d.was:
		return fmt.Sprintf("+ %s: %s", d.path, m.value(d.after))
	case !d.is:
		return fmt.Sprintf("- %s: %s", d.path, m.value(d.before))
	}
	return fmt.Sprintf("~ %s: %s -> %s", d.path, m.value(d.before), m.value(d.after))
}
