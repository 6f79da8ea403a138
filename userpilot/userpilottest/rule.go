package userpilottest

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net/http"
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
// any order, each at most once, except for header.
//
//	status=500           Fault.Status, 200 to 999
//	instead              Fault.Instead
//	delay=3s             Fault.Delay
//	retry-after=2s       Fault.RetryAfter
//	cut                  Fault.Cut
//	cut-after-apply      Fault.CutAfterApply
//	html                 Fault.HTML
//	body=text            Fault.Body; it cannot contain a comma
//	header=Name: text    Fault.Header; nor can this
//	cut-body             Fault.CutBody
//	endless              Fault.Endless
//	trickle=100ms        Fault.Trickle
//	every=10             Rule.Every
//	from=100, to=120     Rule.From, Rule.To
//	user=abc             Rule.User
//	p=0.01, seed=7       Rule.P, Rule.Seed
//
// For example: "status=500,every=10"; "status=429,retry-after=2s,from=100,to=120";
// "cut,p=0.01"; "instead,html,user=abc". The error names the field but not its value.
func ParseFault(text string) (Rule, error) {
	var r Rule
	seen := make(map[string]bool)
	for field := range strings.SplitSeq(text, ",") {
		name, value, hasValue := strings.Cut(strings.TrimSpace(field), "=")
		if seen[name] && name != "header" {
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
	if d := r.duration(name); d != nil {
		*d, err = parseDuration(value)
		return err
	}
	if n := r.number(name); n != nil {
		*n, err = parseNumber(value, 1, math.MaxInt)
		return err
	}
	switch name {
	case "status":
		r.Status, err = parseNumber(value, 200, 999)
	case "body":
		if r.Body = []byte(value); !hasValue {
			err = errors.New("takes a text")
		}
	case "header":
		err = r.addHeader(value)
	case "p":
		r.P, err = parseProbability(value)
	case "seed":
		r.Seed, err = parseSeed(value)
	case "user":
		if r.User = value; value == "" {
			err = errors.New("is empty")
		}
	default:
		err = errors.New("is not a field; the fields are status, instead, delay, retry-after, cut, cut-after-apply," +
			" html, body, header, cut-body, endless, trickle, every, from, to, user, p, seed")
	}
	return err
}

// addHeader adds a header as it stands in an answer. Both halves must be what an answer may contain.
func (r *Rule) addHeader(text string) error {
	name, value, ok := strings.Cut(text, ":")
	value = strings.TrimSpace(value)
	printable := strings.IndexFunc(value, func(c rune) bool { return c < ' ' || c > '~' }) < 0
	if !ok || name == "" || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || !printable {
		return errors.New("must be a name and a text such as Content-Type: text/plain")
	}
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	r.Header.Add(name, value)
	return nil
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
	case "instead":
		return &r.Instead
	case "endless":
		return &r.Endless
	}
	return nil
}

// duration returns the field for a name that takes a duration, or nil for other names.
func (r *Rule) duration(name string) *time.Duration {
	switch name {
	case "delay":
		return &r.Delay
	case "retry-after":
		return &r.RetryAfter
	case "trickle":
		return &r.Trickle
	}
	return nil
}

// number returns the field of a number from 1, or nil.
func (r *Rule) number(name string) *int {
	switch name {
	case "every":
		return &r.Every
	case "from":
		return &r.From
	case "to":
		return &r.To
	}
	return nil
}

// isNothing reports whether the fault does nothing.
func (f Fault) isNothing() bool {
	return f.status() == 0 && f.Delay == 0 && f.Trickle == 0 && f.Body == nil && f.Header == nil &&
		!f.Cut && !f.CutAfterApply && !f.CutBody && !f.Endless
}

func (r *Rule) check() error {
	f := r.Fault
	switch {
	case f.isNothing():
		return errors.New("has conditions, but no fault")
	case r.To != 0 && r.To < r.From:
		return errors.New(`"to" is before "from"`)
	case f.Cut && f.CutAfterApply:
		return errors.New(`"cut" and "cut-after-apply" exclude each other`)
	case f.Instead && f.CutAfterApply:
		return errors.New(`"instead" and "cut-after-apply" exclude each other`)
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
