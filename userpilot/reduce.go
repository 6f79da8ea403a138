package userpilot

import (
	"iter"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Property is one thing of a user that an event sets.
type Property struct {
	// Path tells properties apart; it is a JSON pointer into an identify, "/metadata/plan",
	// but for the company: "/company" is which company the user is in, and a property of the
	// company "acme" is "/company/acme/plan". "" is the user as such, for an event that sets
	// nothing else.
	Path string
	// Company is the company's id as it was written, for "/company" alone; empty if there is none.
	Company string
}

const companyPath = "/company"

// Standing is how a property compares with what newer events have set.
type Standing int

// The standings of a property.
const (
	Newest     Standing = iota // no newer event has set it
	Repeated                   // a newer event has set it to the same; only "/company" can be that
	Superseded                 // a newer event has set it
)

// Properties yields what an event sets. A name that is there twice comes twice. Of events that
// [Merge] would not touch it yields as much as can be said: a member that nobody documents counts
// as one property, and so does a nested value. e must be an event that [Parse] took.
func (e Event) Properties() iter.Seq[Property] {
	return func(yield func(Property) bool) {
		more := true
		e.reduce(func(p Property) Standing {
			more = more && yield(p)
			return Newest
		})
	}
}

// Without returns the event without what newer events have set, as judge says of each property.
// Names and values that are left stand as they were written, and if all are, so does the body. ok is
// false if nothing is left to say.
//
// A user is in one company at a time. So where a newer event has named another one, the whole
// company goes: to name this one would move the user back. Where a newer event has named the same,
// it goes once none of its properties is left.
func (e Event) Without(judge func(Property) Standing) (rest Event, ok bool) {
	body, kept, dropped := e.reduce(judge)
	switch {
	case kept == 0:
		return Event{}, false
	case dropped == 0:
		return e, true
	}
	rest, err := Parse(body)
	return rest, err == nil // what is left of an identify is one
}

// reduce writes the event anew with what judge does not call superseded, and counts what was kept
// and what was not.
func (e Event) reduce(judge func(Property) Standing) (body []byte, kept, dropped int) {
	r := reduction{judge: judge, body: append(make([]byte, 0, len(e.body)), '{')}
	top := newReader(nil)
	defer top.free()
	for name, value := range top.members(e.body) {
		r.member(name, value)
	}
	if r.kept == 0 && r.dropped == 0 {
		r.count(judge(Property{}) != Superseded)
	}
	return append(r.body, '}'), r.kept, r.dropped
}

// reduction is one Without.
type reduction struct {
	judge         func(Property) Standing
	body          []byte
	kept, dropped int
}

func (r *reduction) count(kept bool) bool {
	if kept {
		r.kept++
	} else {
		r.dropped++
	}
	return kept
}

// write appends a member to the object that is being written.
func (r *reduction) write(name, value jsontext.Value) {
	if last := r.body[len(r.body)-1]; last != '{' {
		r.body = append(r.body, ',')
	}
	r.body = append(r.body, name...)
	r.body = append(r.body, ':')
	r.body = append(r.body, value...)
}

// member takes in one of the body's own members.
func (r *reduction) member(name, value jsontext.Value) {
	switch path := pointer("", name); {
	case path == "/user_id":
		r.write(name, value)
	case path == "/metadata" && value.Kind() == '{':
		r.object(name, value, path, 0)
	case path == companyPath:
		r.company(name, value)
	case r.count(r.judge(Property{Path: path}) != Superseded):
		r.write(name, value)
	}
}

func (r *reduction) company(name, value jsontext.Value) {
	id := ""
	if value.Kind() == '{' {
		id = companyOf(value)
	}
	switch standing := r.judge(Property{Path: companyPath, Company: id}); {
	case standing == Superseded:
		r.dropped++
	case value.Kind() != '{':
		r.kept++
		r.write(name, value)
	case standing == Newest:
		r.kept++
		r.object(name, value, companyPath+"/"+escape(id), 1)
	default: // its properties alone are a reason to name it
		r.object(name, value, companyPath+"/"+escape(id), 0)
	}
}

// object takes in the members of an object below a path. Where none of its properties is left, nor
// any of the other reasons for it, it is left out, unless it had none.
func (r *reduction) object(name, value jsontext.Value, path string, reasons int) {
	before, start := *r, len(r.body)
	inner := newReader(nil)
	defer inner.free()
	r.write(name, jsontext.Value("{"))
	for key, v := range inner.members(value) {
		if path != "/metadata" && spelling(unquote(key)) != noCompany {
			r.write(key, v)
			continue
		}
		if r.count(r.judge(Property{Path: pointer(path, key)}) != Superseded) {
			r.write(key, v)
		}
	}
	r.body = append(r.body, '}')
	empty := r.kept == before.kept && r.dropped == before.dropped
	if r.kept-before.kept+reasons == 0 && !(empty && path == "/metadata") {
		r.body = r.body[:start]
		if empty {
			r.dropped++ // a company that is named for nothing
		}
	}
}

// companyOf is the id in a company, or what there is of several.
func companyOf(company jsontext.Value) string {
	r := newReader(nil)
	defer r.free()
	var ids []string
	for name, value := range r.members(company) {
		if spelling(unquote(name)) == noCompany || !isUsableID(value) {
			continue
		}
		id := string(value)
		if value.Kind() == '"' {
			id = string(unquote(value))
		}
		if len(ids) == 0 || ids[len(ids)-1] != id {
			ids = append(ids, id)
		}
	}
	return strings.Join(ids, "\x00")
}

// pointer goes one step on from a JSON pointer.
func pointer(path string, name jsontext.Value) string {
	return path + "/" + escape(string(unquote(name)))
}

func escape(name string) string {
	if !strings.ContainsAny(name, "~/") {
		return name
	}
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}
