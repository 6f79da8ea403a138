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
			was, half, room := m.full(false), m.full(true), m.room
			m.add(bytes)
			if m.used != sum || m.full(false) != (sum >= 1000) || m.full(true) != (sum >= 500) {
				t.Fatalf("%d of 1000 bytes used, full: %v, for backfill: %v; want %d", m.used, m.full(false), m.full(true), sum)
			}
			if told := closed(room); told != (was && !m.full(false) || half && !m.full(true)) {
				t.Fatalf("told of room: %v; full before: %v, now: %v", told, was, m.full(false))
			}
			if closed(m.room) {
				t.Fatal("the next to wait would not wait")
			}
		}
	})
}
