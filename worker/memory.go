package worker

// memory bounds what waits, in bytes. It is guarded by the worker's mutex.
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

// announce lets all look again who wait for room.
func (m *memory) signalRoom() {
	close(m.room)
	m.room = make(chan struct{})
}

// share is what one lane may keep loaded, so that one user's backlog cannot fill the memory.
func (m *memory) share() int64 { return m.limit / 64 }
