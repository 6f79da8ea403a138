package userpilot

import (
	"cmp"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// properties is a metadata or company object in the making. An event's object is
// first staged, which changes nothing that append writes, and then committed.
type properties struct {
	present bool
	index   map[string]int // unescaped name -> slot
	slots   []property
	count   int // slots that have a value
	len     int // of the members as append writes them
	written int // members committed so far: the next one's position

	staged      []stagedProperty
	stagedCount int // count and len as they will be
	stagedLen   int
}

// property is a member as it was written, or only a name that was staged.
type property struct {
	name, value jsontext.Value
	position    int // among all members committed: the newest stand last
	turn        int // of the last event that has it
}

type stagedProperty struct {
	slot        int
	name, value jsontext.Value
}

// stage reads the object of the event that is turn's, and reports false if it
// cannot merge: for a nested value, for a name twice, or for more than
// maxProperties together with what is there.
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

// slot returns the slot of a name, a new one if need be.
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

// commit makes what was staged part of the object. present tells an empty object
// from none.
func (p *properties) commit(present bool) {
	p.present = p.present || present
	p.count, p.len = p.stagedCount, p.stagedLen
	for _, s := range p.staged {
		have := &p.slots[s.slot]
		have.name, have.value, have.position = s.name, s.value, p.written
		p.written++
	}
}

// append writes the object after open, or nothing if no event had one.
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

// memberLen is the length of a member with its colon and a comma.
func memberLen(name, value jsontext.Value) int { return len(name) + len(value) + len(":,") }
