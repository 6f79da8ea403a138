package userpilot

import (
	"iter"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Property identifies something that an event sets.
type Property struct {
	// Path identifies the property. It is a JSON pointer into an identify, "/metadata/plan",
	// except for the company: "/company" is which company the user is in, and a property of
	// the company "acme" is "/company/acme/plan". "" is the user's existence, for an event
	// that sets nothing else.
	Path string
	// Company is the company's id as it was written, only for "/company"; empty if there is none.
	Company string
}

const companyPath = "/company"

// Standing is how a property compares with the properties of newer events.
type Standing int

// The standings of a property.
const (
	Newest     Standing = iota // no newer event has set it
	Repeated                   // a newer event has set it to the same value; only for "/company"
	Superseded                 // a newer event has set it
)

// Properties yields the properties that an event sets. It yields a duplicate name twice. For
// events that [Merge] would not merge it is an approximation: an undocumented member counts as
// one property, and so does a nested value. e must be an event that [Parse] accepted.
func (e Event) Properties() iter.Seq[Property] {
	return func(yield func(Property) bool) {
		more := true
		e.reduce(func(p Property) Standing {
			more = more && yield(p)
			return Newest
		})
	}
}

// Without returns the event without the properties that newer events have set; standing classifies
// each property. Remaining names and values are unchanged, and so is the whole body if nothing is
// removed. ok is false if nothing remains.
//
// A user is in one company at a time. So if a newer event has named another company, Without
// removes the whole company: naming it would move the user back. If a newer event has named the
// same company, Without removes it once none of its properties remains.
func (e Event) Without(standing func(Property) Standing) (rest Event, ok bool) {
	body, kept, dropped := e.reduce(standing)
	switch {
	case kept == 0:
		return Event{}, false
	case dropped == 0:
		return e, true
	}
	rest, err := Parse(body)
	return rest, err == nil // the rest of a valid identify is valid
}

// reduce rewrites the event without the superseded properties, and counts the kept and the dropped
// ones.
func (e Event) reduce(standing func(Property) Standing) (body []byte, kept, dropped int) {
	r := reduction{standing: standing, body: append(make([]byte, 0, len(e.body)), '{')}
	top := newReader(nil)
	defer top.free()
	for name, value := range top.members(e.body) {
		r.member(name, value)
	}
	if r.kept == 0 && r.dropped == 0 {
		r.count(standing(Property{}) != Superseded)
	}
	return append(r.body, '}'), r.kept, r.dropped
}

// reduction is the state of one reduce.
type reduction struct {
	standing      func(Property) Standing
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

// write appends a member to the current object.
func (r *reduction) write(name, value jsontext.Value) {
	if last := r.body[len(r.body)-1]; last != '{' {
		r.body = append(r.body, ',')
	}
	r.body = append(r.body, name...)
	r.body = append(r.body, ':')
	r.body = append(r.body, value...)
}

// member processes one of the body's top-level members.
func (r *reduction) member(name, value jsontext.Value) {
	switch path := pointer("", name); {
	case path == "/user_id":
		r.write(name, value)
	case path == "/metadata" && value.Kind() == '{':
		r.object(name, value, path, 0)
	case path == companyPath:
		r.company(name, value)
	case r.count(r.standing(Property{Path: path}) != Superseded):
		r.write(name, value)
	}
}

func (r *reduction) company(name, value jsontext.Value) {
	id := ""
	if value.Kind() == '{' {
		id = companyOf(value)
	}
	switch standing := r.standing(Property{Path: companyPath, Company: id}); {
	case standing == Superseded:
		r.dropped++
	case value.Kind() != '{':
		r.kept++
		r.write(name, value)
	case standing == Newest:
		r.kept++
		r.object(name, value, companyPath+"/"+escape(id), 1)
	default: // only its properties are a reason to keep it
		r.object(name, value, companyPath+"/"+escape(id), 0)
	}
}

// object processes the members of an object below a path. reasons counts other reasons to keep the
// object. object omits it if there are none and no property remains, except for metadata that was
// empty from the start.
func (r *reduction) object(name, value jsontext.Value, path string, reasons int) {
	before, start := *r, len(r.body)
	inner := newReader(nil)
	defer inner.free()
	r.write(name, jsontext.Value("{"))
	for key, v := range inner.members(value) {
		if path != "/metadata" && companyKey(unquote(key)) != noCompany {
			r.write(key, v)
			continue
		}
		if r.count(r.standing(Property{Path: pointer(path, key)}) != Superseded) {
			r.write(key, v)
		}
	}
	r.body = append(r.body, '}')
	empty := r.kept == before.kept && r.dropped == before.dropped
	if r.kept-before.kept+reasons == 0 && !(empty && path == "/metadata") {
		r.body = r.body[:start]
		if empty {
			r.dropped++ // an empty company without a reason to keep it
		}
	}
}

// companyOf returns the id of a company; if there are several, all of them joined.
func companyOf(company jsontext.Value) string {
	r := newReader(nil)
	defer r.free()
	var ids []string
	for name, value := range r.members(company) {
		if companyKey(unquote(name)) == noCompany || !isUsableID(value) {
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

// pointer appends a name to a JSON pointer.
func pointer(path string, name jsontext.Value) string {
	return path + "/" + escape(string(unquote(name)))
}

func escape(name string) string {
	if !strings.ContainsAny(name, "~/") {
		return name
	}
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}
