package worker

import (
	"testing"

	"pgregory.net/rapid"
)

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Waiters for room are woken whenever the memory is no longer full.
func TestMemoryAnnouncesRoom(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory(1000)
		sum := int64(0)
		for _, bytes := range rapid.SliceOf(rapid.Int64Range(-600, 600)).Draw(t, "bytes") {
			bytes = max(bytes, -sum)
			sum += bytes
			was, room := m.full(), m.room
			m.add(bytes)
			if m.used != sum || m.full() != (sum >= 1000) {
				t.Fatalf("%d of 1000 bytes used, full: %v; want %d", m.used, m.full(), sum)
			}
			if told := closed(room); told != (was && !m.full()) {
				t.Fatalf("told of room: %v; full before: %v, now: %v", told, was, m.full())
			}
			if closed(m.room) {
				t.Fatal("the next to wait would not wait")
			}
		}
	})
}
