// Package asynclog keeps a blocked log from blocking the goroutines that write to it.
//
// A [slog.Handler] writes when it is called. If its output blocks, such as a pipe whose reader hangs,
// every goroutine that logs blocks too, with the locks that it holds. The handler of this package
// queues the records instead, and another goroutine writes them.
package asynclog

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// capacity is how many records may wait to be written.
const capacity = 4096

// Wrap returns a logger that never blocks and writes through log's handler. While that handler blocks,
// several thousand records wait for it. Further records are dropped, and a line in the log says how many.
// The logger and all loggers derived from it write in the order of the calls. Its goroutine ends when
// there is nothing to write.
//
// Wrap returns a logger that it has made unchanged. For a nil logger it returns one that discards.
func Wrap(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	if _, ok := log.Handler().(*handler); ok {
		return log
	}
	return slog.New(&handler{next: log.Handler(), queue: &queue{first: log.Handler()}})
}

// handler queues records for another handler.
type handler struct {
	next  slog.Handler
	queue *queue
}

// Enabled implements [slog.Handler].
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements [slog.Handler]. Its error is always nil.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	h.queue.add(entry{context.WithoutCancel(ctx), h.next, r.Clone()})
	return nil
}

// WithAttrs implements [slog.Handler].
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.next.WithAttrs(attrs), h.queue}
}

// WithGroup implements [slog.Handler].
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.next.WithGroup(name), h.queue}
}

// Flush blocks until everything logged through a logger of [Wrap] is written, or ctx ends. Call it
// before the process exits.
func Flush(ctx context.Context, log *slog.Logger) {
	h, ok := log.Handler().(*handler)
	if !ok {
		return // the logger discards, or writes synchronously
	}
	h.queue.mu.Lock()
	idle := h.queue.idle
	h.queue.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// entry is a record with its handler.
type entry struct {
	ctx  context.Context
	next slog.Handler
	slog.Record
}

// queue holds the entries to write.
type queue struct {
	first slog.Handler // writes the number of dropped records

	mu      sync.Mutex
	waiting []entry
	dropped int
	idle    chan struct{} // closed when everything is written; nil if it already is
}

func (q *queue) add(e entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == capacity {
		q.dropped++
		return
	}
	q.waiting = append(q.waiting, e)
	if q.idle == nil {
		q.idle = make(chan struct{})
		go q.write()
	}
}

func (q *queue) write() {
	for {
		entries := q.take()
		if entries == nil {
			return
		}
		for _, e := range entries {
			_ = e.next.Handle(e.ctx, e.Record) // there is nowhere to report the error
		}
	}
}

// take returns the waiting entries, or nil if there are none; then the goroutine must end.
func (q *queue) take() []entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	entries := q.waiting
	if q.waiting = nil; q.dropped > 0 {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were dropped because the log output did not keep up", 0)
		r.AddAttrs(slog.Int("lines", q.dropped))
		entries = append(entries, entry{context.Background(), q.first, r})
		q.dropped = 0
	}
	if entries == nil {
		close(q.idle)
		q.idle = nil
	}
	return entries
}
