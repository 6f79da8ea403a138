package userpilottest

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"strconv"
	"strings"
	"time"
)

// Rule is a fault with conditions: it applies to the calls that meet all of them. A
// Rule without conditions applies to every call.
type Rule struct {
	Fault
	// Every selects every n-th call, by [Request.Number]. 0 is no condition.
	Every int
	// From and To select calls by number, inclusive. 0 is no condition.
	From, To int
	// User selects the calls about this user. "" is no condition.
	User string
	// P selects a call with this probability, above 0 and at most 1. 0 is no condition.
	// The same Seed selects the same numbers in every run.
	P    float64
	Seed uint64
}

// Matches reports whether the rule's fault applies to a call.
func (r Rule) Matches(q Request) bool {
	return (r.Every == 0 || q.Number%r.Every == 0) &&
		(r.From == 0 || q.Number >= r.From) &&
		(r.To == 0 || q.Number <= r.To) &&
		(r.User == "" || q.User == r.User) &&
		(r.P == 0 || r.draw(q.Number) < r.P)
}

// draw returns a pseudorandom value in [0, 1) for a call's number. It depends only on the
// seed and the number, so a call's fault does not depend on the calls around it.
func (r Rule) draw(number int) float64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d/%d", r.Seed, number)
	// FNV mixes its high bits badly for short texts: use the finalizer of splitmix64.
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}

// Rules are tried in order; the first that matches decides.
type Rules []Rule

// Fault returns the fault for a call. It can serve as [Options.Faults].
func (r Rules) Fault(q Request) Fault {
	for _, rule := range r {
		if rule.Matches(q) {
			return rule.Fault
		}
	}
	return Fault{}
}

// ParseFault parses a rule as given on a command line: fields separated by commas, in
// any order, each at most once.
//
//	status=500           Fault.Status, 200 to 599
//	delay=3s             Fault.Delay
//	retry-after=2s       Fault.RetryAfter
//	cut                  Fault.Cut
//	cut-after-apply      Fault.CutAfterApply
//	html                 Fault.HTML
//	cut-body             Fault.CutBody
//	endless              Fault.Endless
//	trickle=100ms        Fault.Trickle
//	every=10             Rule.Every
//	from=100, to=120     Rule.From, Rule.To
//	user=abc             Rule.User
//	p=0.01, seed=7       Rule.P, Rule.Seed
//
// For example: "status=500,every=10"; "status=429,retry-after=2s,from=100,to=120";
// "cut,p=0.01". The error names the field but not its value.
func ParseFault(text string) (Rule, error) {
	var r Rule
	seen := make(map[string]bool)
	for field := range strings.SplitSeq(text, ",") {
		name, value, hasValue := strings.Cut(strings.TrimSpace(field), "=")
		if seen[name] {
			return Rule{}, fmt.Errorf("fault: %q appears twice", name)
		}
		seen[name] = true
		if err := r.set(name, value, hasValue); err != nil {
			return Rule{}, fmt.Errorf("fault: %q %w", name, err)
		}
	}
	if err := r.check(); err != nil {
		return Rule{}, fmt.Errorf("fault: %w", err)
	}
	return r, nil
}

func (r *Rule) set(name, value string, hasValue bool) (err error) {
	if flag := r.flag(name); flag != nil {
		if hasValue {
			return errors.New("takes no value")
		}
		*flag = true
		return nil
	}
	switch name {
	case "status":
		r.Status, err = parseNumber(value, 200, 599)
	case "delay":
		r.Delay, err = parseDuration(value)
	case "retry-after":
		r.RetryAfter, err = parseDuration(value)
	case "trickle":
		r.Trickle, err = parseDuration(value)
	case "every":
		r.Every, err = parseNumber(value, 1, math.MaxInt)
	case "from":
		r.From, err = parseNumber(value, 1, math.MaxInt)
	case "to":
		r.To, err = parseNumber(value, 1, math.MaxInt)
	case "p":
		r.P, err = parseProbability(value)
	case "seed":
		r.Seed, err = parseSeed(value)
	case "user":
		if r.User = value; value == "" {
			err = errors.New("is empty")
		}
	default:
		err = errors.New("is not a field; the fields are status, delay, retry-after, cut, cut-after-apply," +
			" html, cut-body, endless, trickle, every, from, to, user, p, seed")
	}
	return err
}

// flag returns the field for a name that takes no value, or nil for other names.
func (r *Rule) flag(name string) *bool {
	switch name {
	case "cut":
		return &r.Cut
	case "cut-after-apply":
		return &r.CutAfterApply
	case "cut-body":
		return &r.CutBody
	case "html":
		return &r.HTML
	case "endless":
		return &r.Endless
	}
	return nil
}

func (r *Rule) check() error {
	f := r.Fault
	nothing := f.status() == 0 && f.Delay == 0 && f.Trickle == 0 &&
		!f.Cut && !f.CutAfterApply && !f.CutBody && !f.Endless
	switch {
	case nothing:
		return errors.New("has conditions, but no fault")
	case r.To != 0 && r.To < r.From:
		return errors.New(`"to" is before "from"`)
	case f.Cut && f.CutAfterApply:
		return errors.New(`"cut" and "cut-after-apply" exclude each other`)
	}
	return nil
}

func parseNumber(value string, least, most int) (int, error) {
	n, err := strconv.Atoi(value)
	switch {
	case err == nil && n >= least && n <= most:
		return n, nil
	case most == math.MaxInt:
		return 0, fmt.Errorf("must be a whole number from %d", least)
	}
	return 0, fmt.Errorf("must be a whole number from %d to %d", least, most)
}

func parseDuration(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, errors.New("must be a positive duration such as 500ms")
	}
	return d, nil
}

func parseProbability(value string) (float64, error) {
	p, err := strconv.ParseFloat(value, 64)
	if err != nil || !(p > 0 && p <= 1) {
		return 0, errors.New("must be above 0 and at most 1")
	}
	return p, nil
}

func parseSeed(value string) (uint64, error) {
	seed, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return 0, errors.New("must be a whole number from 0")
	}
	return seed, nil
}
