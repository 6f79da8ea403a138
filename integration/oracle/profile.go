package oracle

import (
	"fmt"
	"maps"
	"slices"
)

// profile is what the API knows about a user and the user's companies, or what an identify sets; no
// company has more than one user. A company's properties have its id as a prefix.
type profile map[string]string

// itsCompany is the property that says which company the user is in.
const itsCompany = "its company"

// companyID returns the id of the company, as it was written; empty without one.
func (i Identify) companyID() string { return string(i.Company["id"]) }

// settings returns what an identify sets. The value of a property that it removes is null.
func (i Identify) settings() profile {
	p := profile{}
	for name, value := range i.Metadata {
		p[name] = string(value)
	}
	id := i.companyID()
	if id == "" {
		return p
	}
	p[itsCompany] = id
	for name, value := range i.Company {
		if name != "id" {
			p["company "+id+": "+name] = string(value)
		}
	}
	return p
}

// apply sets the sent properties, removes those that are null, and keeps the rest.
func (p profile) apply(sent profile) {
	for name, value := range sent {
		if value == "null" {
			delete(p, name)
		} else {
			p[name] = value
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
