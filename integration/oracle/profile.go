package oracle

import (
	"fmt"
	"maps"
	"slices"
)

// profile is what the API knows of a user: the properties, and the company.
type profile struct {
	properties Properties
	company    string
	companies  map[string]Properties // no company has users but one
}

func newProfile() *profile {
	return &profile{properties: Properties{}, companies: map[string]Properties{}}
}

// apply is one call's effect.
func (p *profile) apply(i Identify) {
	p.properties.merge(i.Metadata)
	id := string(i.Company["id"])
	if id == "" {
		return
	}
	p.company = id
	if p.companies[id] == nil {
		p.companies[id] = Properties{}
	}
	p.companies[id].merge(i.Company)
}

// difference tells where two profiles differ, or nothing.
func (p *profile) difference(want *profile) string {
	if p.company != want.company {
		return fmt.Sprintf("the company is %s, want %s", p.company, want.company)
	}
	if d := p.properties.difference(want.properties); d != "" {
		return d
	}
	for _, id := range slices.Sorted(maps.Keys(want.companies)) {
		if d := p.companies[id].difference(want.companies[id]); d != "" {
			return fmt.Sprintf("company %s: %s", id, d)
		}
	}
	return ""
}

// merge sets what is sent, removes what is null, and keeps the rest.
func (p Properties) merge(sent Properties) {
	for name, value := range sent {
		if string(value) == "null" {
			delete(p, name)
		} else {
			p[name] = value
		}
	}
}

func (p Properties) difference(want Properties) string {
	all := maps.Clone(want)
	maps.Copy(all, p)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if string(p[name]) != string(want[name]) {
			return fmt.Sprintf("%s is %.100q, want %.100q", name, p[name], want[name])
		}
	}
	return ""
}
