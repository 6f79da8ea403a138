package userpilot

import "bytes"

// maxProperties is the most that a merged metadata or company holds. Userpilot is
// said to take 500; a single event above it is Userpilot's to judge, a merged one
// would be our doing.
const maxProperties = 500

// Merge merges as many events from the front of events as can be merged invisibly:
// they must be of one user, oldest first, and the profile after the one call is the
// same as after a call for each. It returns the body of that call and the number of
// events in it, n >= 1 unless events is empty. For n == 1 body is the event's own,
// unchanged and not copied.
//
// Only what is fully understood merges: user_id, a metadata object and a company
// object with one id or company_id that is a string, neither of them with a nested
// value or a name twice. All else goes alone. Two companies merge only if it is the
// same one, spelled the same way: a user who moves from one company to another has
// changed the properties of both. Events before the first company's are no obstacle,
// as metadata belongs to the user and not to the company.
//
// The newest value of a property wins. A null is a value, as it removes the
// property. Values are copied as they were written, and each property stands where
// its newest value would: whoever reads case-insensitively ends with that one too.
// The merged body has at most [MaxEventBytes], and at most 500 properties each for
// the user and the company. Merging takes time linear in the bytes that it reads.
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

// joins reports whether next may share a call with e, by what [Parse] found.
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
	latest            Event // the newest event, or the newest that has a company
	events            int
	metadata, company properties
}

// add takes e in, or reports false: then nothing more can be added.
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

// stagedLen is the length of the body with the staged event, or a little more.
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
