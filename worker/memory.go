package worker

// memory bounds the size of waiting events, in bytes. The worker's mutex guards it.
type memory struct {
	limit, used int64
	room        chan struct{} // closed when there may be room again
}

func newMemory(limit int64) memory { return memory{limit: limit, room: make(chan struct{})} }

func (m *memory) full() bool { return m.used >= m.limit }

func (m *memory) add(bytes int64) {
	was := m.full()
	m.used += bytes
	if was && !m.full() {
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
