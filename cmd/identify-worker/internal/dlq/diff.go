package dlq

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// maxShownChanges is how many changes of one event are shown.
const maxShownChanges = 20

// difference is a change that an edit makes at one path. A value is absent if only one of the two
// events has the path.
type difference struct {
	place         string // a JSON pointer
	path          string // as jq writes it, for the screen
	before, after any
	was, is       bool
}

// differences compares two events, member by member, in the order of their names.
func (m *mask) differences(before, after any) []difference {
	return m.compare(difference{before: before, after: after, was: true, is: true})
}

// compare lists the differences within d.
func (m *mask) compare(d difference) []difference {
	if within := m.compareAbsent(d); len(within) > 0 {
		return within
	}
	switch before := d.before.(type) {
	case map[string]any:
		if after, ok := d.after.(map[string]any); ok {
			return m.compareObjects(d, before, after)
		}
	case []any:
		if after, ok := d.after.([]any); ok {
			return m.compareArrays(d, before, after)
		}
	}
	if d.was && d.is && sameValue(d.before, d.after) {
		return nil
	}
	if d.path == "" {
		d.path = "."
	}
	return []difference{d}
}

// compareAbsent lists the members of an object that only one event has.
func (m *mask) compareAbsent(d difference) []difference {
	before, _ := d.before.(map[string]any)
	after, _ := d.after.(map[string]any)
	if d.was && d.is {
		return nil
	}
	return m.compareObjects(d, before, after)
}

func (m *mask) compareObjects(d difference, before, after map[string]any) (all []difference) {
	names := slices.AppendSeq(slices.Collect(maps.Keys(before)), maps.Keys(after))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		at := difference{place: d.place + "/" + pointerStep(name), path: d.path + m.step(name)}
		at.before, at.was = before[name]
		at.after, at.is = after[name]
		all = append(all, m.compare(at)...)
	}
	return all
}

func (m *mask) compareArrays(d difference, before, after []any) (all []difference) {
	for i := range max(len(before), len(after)) {
		at := difference{place: fmt.Sprintf("%s/%d", d.place, i), path: fmt.Sprintf("%s[%d]", d.path, i), was: i < len(before), is: i < len(after)}
		if at.was {
			at.before = before[i]
		}
		if at.is {
			at.after = after[i]
		}
		all = append(all, m.compare(at)...)
	}
	return all
}

// pointerStep escapes a name for a JSON pointer.
func pointerStep(name string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(name) }

var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// step formats a member as part of a jq path.
func (m *mask) step(name string) string {
	name = m.name(name)
	if plainName.MatchString(name) {
		return "." + name
	}
	return "[" + quote(name) + "]"
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
		return fmt.Sprintf("+ %s: %s", d.path, m.valueAt(d.place, d.after))
	case !d.is:
		return fmt.Sprintf("- %s: %s", d.path, m.valueAt(d.place, d.before))
	}
	return fmt.Sprintf("~ %s: %s -> %s", d.path, m.valueAt(d.place, d.before), m.valueAt(d.place, d.after))
}

// describeReplacement formats the replacement of text that is not UTF-8 as a line of a diff.
func (m *mask) describeReplacement(r deadletter.Replacement) string {
	what := "not UTF-8"
	if r.Bytes > 1 {
		what = "half a surrogate pair"
	}
	return fmt.Sprintf("~ %s: byte %d is %s -> \ufffd", m.pathOf(r.Path), r.Byte, what)
}

// pathOf formats a JSON pointer as jq writes it.
func (m *mask) pathOf(pointer jsontext.Pointer) string {
	var path strings.Builder
	for name := range pointer.Tokens() {
		path.WriteString(m.step(name))
	}
	return cmp.Or(path.String(), ".")
}

// stays reports whether a replay leaves the value at this place as a newer event has set it.
func (d difference) stays(newer []deadletter.PropertyStanding) bool {
	return d.is && slices.ContainsFunc(newer, func(p deadletter.PropertyStanding) bool {
		return p.Superseded && slices.ContainsFunc(placesOf(p.Path), func(place string) bool {
			return d.place == place || strings.HasPrefix(d.place, place+"/")
		})
	})
}

// placesOf are where an event may have a property. The property's path has the company's id, and a
// company may have its id under two names.
func placesOf(path string) []string {
	company, found := strings.CutPrefix(path, "/company/")
	_, name, named := strings.Cut(company, "/")
	switch {
	case path == "/company":
		return []string{"/company/id", "/company/company_id"}
	case found && named:
		return []string{"/company/" + name}
	}
	return []string{path}
}
