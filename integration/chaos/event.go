package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// What must be in no output: the users' domain, and how their ids begin when a subject
// encodes them.
const (
	userDomain  = "@chaos.example"
	userEncoded = "dXNlci0" // user-
)

func userName(i int) string { return fmt.Sprintf("user-%05d%s", i, userDomain) }

// newEvent makes a user's n-th event. It bears its number, and a mark of its own, e<n>, so that a
// merged call shows whose events it held. And there is in it whatever merging could get
// wrong: a number longer than a float64, a property that comes and goes, a company that changes.
// A pad makes it that many times longer to read than a letter.
func newEvent(r *rand.Rand, user string, n int, poison bool, pad int) []byte {
	note := strconv.Quote("note " + strconv.Itoa(n))
	if r.IntN(3) == 0 {
		note = "null"
	}
	more := ""
	if poison {
		more = `,"bad":true`
	}
	if pad > 0 {
		more += `,"pad":"` + strings.Repeat(`\u00e9`, pad) + `"`
	}
	company := ""
	if r.IntN(2) == 0 {
		company = fmt.Sprintf(`,"company":{"id":"company-%d-of-%s","seats":%d,"s%d":%d}`, n/8%3, user, n, n%5, n)
	}
	return fmt.Appendf(nil, `{"user_id":%q,"metadata":{"n":%d,"e%d":true,"amount":98765432109876543210.%d,"plan":"p%d","note":%s%s}%s}`,
		user, n, n, n, n%7, note, more, company)
}

// identify is a call as it was received, or an event.
type identify struct {
	User     string     `json:"user_id"`
	Metadata properties `json:"metadata"`
	Company  properties `json:"company"`
}

type properties map[string]json.RawMessage

// parse reads a body and takes the marks and the pad out: those are no properties of a profile
// that is to be kept in memory.
func parse(body []byte) (x identify, numbers []int, err error) {
	if err := json.Unmarshal(body, &x); err != nil {
		return x, nil, err
	}
	delete(x.Metadata, "pad")
	for name := range x.Metadata {
		if digits, ok := strings.CutPrefix(name, "e"); ok {
			if n, err := strconv.Atoi(digits); err == nil {
				numbers = append(numbers, n)
				delete(x.Metadata, name)
			}
		}
	}
	slices.Sort(numbers)
	return x, numbers, nil
}

// merge sets what is sent, removes what is null, and keeps the rest.
func (p properties) merge(sent properties) {
	for name, value := range sent {
		if string(value) == "null" {
			delete(p, name)
		} else {
			p[name] = value
		}
	}
}

// profile is what the API knows of a user: the properties, and the company.
type profile struct {
	properties properties
	company    string
	companies  map[string]properties // no company has users but one
}

func newProfile() *profile {
	return &profile{properties: properties{}, companies: map[string]properties{}}
}

// apply is one call's effect.
func (p *profile) apply(x identify) {
	p.properties.merge(x.Metadata)
	id := string(x.Company["id"])
	if id == "" {
		return
	}
	p.company = id
	if p.companies[id] == nil {
		p.companies[id] = properties{}
	}
	p.companies[id].merge(x.Company)
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

func (p properties) difference(want properties) string {
	all := maps.Clone(want)
	maps.Copy(all, p)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if string(p[name]) != string(want[name]) {
			return fmt.Sprintf("%s is %q, want %q", name, p[name], want[name])
		}
	}
	return ""
}
