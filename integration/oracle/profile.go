package oracle

import (
	"fmt"
	"maps"
	"slices"
)

// profile is what the API knows of a user, and of the user's companies: no company has users but one.
// The properties of a company have its id before their names.
type profile map[string]string

// apply is one call's effect.
func (p profile) apply(i Identify) {
	p.merge("", i.Metadata)
	if id := string(i.Company["id"]); id != "" {
		p["its company"] = id
		p.merge("company "+id+": ", i.Company)
	}
}

// merge sets what is sent, removes what is null, and keeps the rest.
func (p profile) merge(prefix string, sent Properties) {
	for name, value := range sent {
		if string(value) == "null" {
			delete(p, prefix+name)
		} else {
			p[prefix+name] = string(value)
		}
	}
}

// difference tells where two profiles differ, or nothing.
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
