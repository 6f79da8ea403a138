package oracle

import (
	"fmt"
	"maps"
	"slices"
)

// profile is what the API knows about a user and the user's companies; no company has more than one
// user. A company's properties have its id as a prefix.
type profile map[string]string

// apply applies one call to the profile.
func (p profile) apply(i Identify) {
	p.merge("", i.Metadata)
	if id := string(i.Company["id"]); id != "" {
		p["its company"] = id
		p.merge("company "+id+": ", i.Company)
	}
}

// merge sets the sent properties, removes those that are null, and keeps the rest.
func (p profile) merge(prefix string, sent Properties) {
	for name, value := range sent {
		if string(value) == "null" {
			delete(p, prefix+name)
		} else {
			p[prefix+name] = string(value)
		}
	}
}

// difference describes where two profiles differ, or returns an empty string.
func (p profile) difference(want profile) string {
	all := maps.Clone(want)
	maps.Copy(all, p)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if p[name] != want[name] {
			return fmt.Sprintf("%s is %.100q, want %.100q", name, p[name], want[name])
		}
	}
	return ""
}
