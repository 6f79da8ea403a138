package userpilot

import (
	"cmp"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// properties builds a merged metadata or company object. An event's object is first
// staged, which does not change what append writes, and then committed.
type properties struct {
	present bool
	index   map[string]int // unescaped name -> slot
	slots   []property
	count   int // slots with a value
	len     int // length of the members as append writes them
	written int // members committed so far; the next one's position

	staged      []stagedProperty
	stagedCount int // count after a commit
	stagedLen   int // len after a commit
}

// property is a member as it was written, or only a name that was staged.
type property struct {
	name, value jsontext.Value
	position    int // among all committed members; the newest come last
	turn        int // number of the last event that has it
}

type stagedProperty struct {
	slot        int
	name, value jsontext.Value
}

// stage stages the object of the event with number turn. It reports false if the object
// cannot merge: because of a nested value, a duplicate name, or more than maxProperties
// in total.
func (p *properties) stage(r *reader, object jsontext.Value, turn int) bool {
	p.staged = p.staged[:0]
	p.stagedCount, p.stagedLen = p.count, p.len
	for name, value := range r.members(object) {
		slot := p.slot(unquote(name))
		have := &p.slots[slot]
		if have.turn == turn || value.Kind() == '{' || value.Kind() == '[' {
			return false
		}
		have.turn = turn
		if have.value == nil {
			p.stagedCount++
		} else {
			p.stagedLen -= memberLen(have.name, have.value)
		}
		if p.stagedCount > maxProperties {
			return false
		}
		p.stagedLen += memberLen(name, value)
		p.staged = append(p.staged, stagedProperty{slot, name, value})
	}
	return true
}

// slot returns the slot of a name, adding one if needed.
func (p *properties) slot(name []byte) int {
	if slot, ok := p.index[string(name)]; ok {
		return slot
	}
	if p.index == nil {
		p.index = make(map[string]int)
	}
	slot := len(p.slots)
	p.index[string(name)] = slot
	p.slots = append(p.slots, property{})
	return slot
}

// commit adds the staged members to the object. present distinguishes an empty object
// from a missing one.
func (p *properties) commit(present bool) {
	p.present = p.present || present
	p.count, p.len = p.stagedCount, p.stagedLen
	for _, s := range p.staged {
		have := &p.slots[s.slot]
		have.name, have.value, have.position = s.name, s.value, p.written
		p.written++
	}
}

// append appends open and the object to b, or nothing if no event had the object.
func (p *properties) append(b []byte, open string) []byte {
	if !p.present {
		return b
	}
	b = append(b, open...)
	slices.SortFunc(p.slots, func(x, y property) int { return cmp.Compare(x.position, y.position) })
	comma := false
	for _, have := range p.slots {
		if have.value == nil { // staged, but never committed
			continue
		}
		if comma {
			b = append(b, ',')
		}
		b = append(b, have.name...)
		b = append(b, ':')
		b = append(b, have.value...)
		comma = true
	}
	return append(b, '}')
}

// memberLen returns the length of a member with its colon and a comma.
func memberLen(name, value jsontext.Value) int { return len(name) + len(value) + len(":,") }
