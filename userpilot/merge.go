package userpilot

import "bytes"

// maxProperties is the maximum number of properties in a merged metadata or company.
// Userpilot is said to accept 500. A larger single event is for Userpilot to judge; a
// larger merged one would be our fault.
const maxProperties = 500

// Merge merges as many events from the front of events as can be merged invisibly:
// the profile after the one call is the same as after one call for each event. The
// events must be those of one user, oldest first. Merge returns the body of the call
// and the number of events in it, n >= 1 unless events is empty. For n == 1 body is
// the event's own, not a copy.
//
// Only events that are fully understood merge: they have user_id, a metadata object
// and a company object with one id or company_id that is a string, and neither object
// has a nested value or a duplicate name. Other events are sent alone. Two companies
// merge only if they are the same one and use the same member for the id: a user who
// moves from one company to another has changed the properties of both. Events
// without a company merge with one, because metadata belongs to the user and not to
// the company.
//
// The newest value of a property wins. A null counts as a value, because it removes the
// property. Merge copies values as they were written and puts each property at the
// position of its newest value, so that a case-insensitive reader ends up with the
// newest value too. The merged body has at most [MaxEventBytes], and at most 500
// properties each for the user and the company. Merging takes time linear in the bytes
// that it reads.
func Merge(events []Event) (body []byte, n int) {
	if len(events) == 0 {
		return nil, 0
	}
	if len(events) == 1 || !events[0].joins(events[1]) {
		return events[0].body, 1
	}
	m := merger{reader: newReader(nil)}
	defer m.reader.free()
	for n < len(events) && m.add(events[n]) {
		n++
	}
	if n < 2 {
		return events[0].body, 1
	}
	return m.body(), n
}

// joins reports whether next may share a call with e, as far as [Parse] knows.
func (e Event) joins(next Event) bool {
	return e.mergeable && next.mergeable && e.userID == next.userID &&
		(e.companyName == noCompany || next.companyName == noCompany || e.sameCompany(next))
}

func (e Event) sameCompany(other Event) bool {
	a, b := e.companyID.of(e.body), other.companyID.of(other.body)
	return e.companyName == other.companyName &&
		(bytes.Equal(a, b) || bytes.Equal(unquote(a), unquote(b)))
}

// merger collects the events of one merged call.
type merger struct {
	reader            *reader
	latest            Event // the newest event, or the newest with a company
	events            int
	metadata, company properties
}

// add adds e, or reports false: then no more events can be added.
func (m *merger) add(e Event) bool {
	if m.events > 0 && !m.latest.joins(e) {
		return false
	}
	m.events++
	if !m.metadata.stage(m.reader, e.metadata.of(e.body), m.events) ||
		!m.company.stage(m.reader, e.company.of(e.body), m.events) ||
		m.events > 1 && m.stagedLen() > MaxEventBytes {
		return false
	}
	m.metadata.commit(!e.metadata.isAbsent())
	m.company.commit(!e.company.isAbsent())
	if m.events == 1 || e.companyName != noCompany {
		m.latest = e
	}
	return true
}

// The merged body's frame.
const (
	userOpen     = `{"user_id":`
	metadataOpen = `,"metadata":{`
	companyOpen  = `,"company":{`
	frameLen     = len(userOpen + metadataOpen + "}" + companyOpen + "}" + "}")
)

// stagedLen returns the length of the body with the staged event, or slightly more.
func (m *merger) stagedLen() int {
	user := m.latest.user
	return frameLen + int(user.end-user.start) + m.metadata.stagedLen + m.company.stagedLen
}

func (m *merger) body() []byte {
	user := m.latest.user.of(m.latest.body)
	b := make([]byte, 0, frameLen+len(user)+m.metadata.len+m.company.len)
	b = append(b, userOpen...)
	b = append(b, user...)
	b = m.metadata.append(b, metadataOpen)
	b = m.company.append(b, companyOpen)
	return append(b, '}')
}
