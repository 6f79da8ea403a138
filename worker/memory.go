package worker

// memory bounds the size of waiting events, in bytes. The worker's mutex guards it.
type memory struct {
	limit, used int64
	room        chan struct{} // closed when there may be room again
}

func newMemory(limit int64) memory { return memory{limit: limit, room: make(chan struct{})} }

// full reports whether there is no room for another event. Backfill leaves half of the memory to live
// events.
func (m *memory) full(backfill bool) bool {
	if backfill {
		return m.used >= m.limit/2
	}
	return m.used >= m.limit
}

func (m *memory) add(bytes int64) {
	full, half := m.full(false), m.full(true)
	m.used += bytes
	if full && !m.full(false) || half && !m.full(true) {
		m.signalRoom()
	}
}

// signalRoom wakes everyone who waits for room.
func (m *memory) signalRoom() {
	close(m.room)
	m.room = make(chan struct{})
}

// share returns how many bytes one lane may keep loaded, so that one user's backlog cannot fill the
// memory.
func (m *memory) share() int64 { return m.limit / 64 }

// waiting counts the events in all lanes.
type waiting struct{ events, live int }

// add counts a lane's events, or with a sign of -1 no longer.
func (n *waiting) add(l *lane, sign int) {
	n.events += sign * len(l.events)
	n.live += sign * l.live
}

func (n *waiting) backfill() int { return n.events - n.live }
