//go:build !noembed

package embedded

import (
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
)

// serverLog forwards the server's log to slog and keeps the first fatal error. It drops
// debug and trace lines, which contain subjects.
type serverLog struct {
	log *slog.Logger

	mu    sync.Mutex
	first error
}

// fatal returns the first fatal error, or nil.
func (l *serverLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

func (l *serverLog) Noticef(format string, v ...any) {
	l.log.Debug(line(format, v), "from", "nats-server")
}

func (l *serverLog) Warnf(format string, v ...any) {
	l.log.Warn(line(format, v), "from", "nats-server")
}

func (l *serverLog) Errorf(format string, v ...any) {
	l.log.Warn(line(format, v), "from", "nats-server")
}

// Fatalf keeps the first error, without logging it: the server calls Fatalf when it cannot
// start, and [Start] returns the error. The error keeps its type, which distinguishes a
// port in use from other failures.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first != nil {
		return
	}
	for _, value := range v {
		if err, ok := value.(error); ok {
			l.first = fmt.Errorf("%w", err)
			return
		}
	}
	l.first = fmt.Errorf("%s", line(format, v))
}

func (l *serverLog) Debugf(string, ...any) {}
func (l *serverLog) Tracef(string, ...any) {}

// clientName is the name of a client, which the server quotes before what it says about the client.
var clientName = regexp.MustCompile(`^(\S+ - \w+:\d+ - )"(?:[^"\\]|\\.)*" - `)

// line is the server's line up to the first quotation mark, without a client's name. Behind one it
// quotes what clients sent: subjects, and parts of events.
func line(format string, v []any) string {
	text := clientName.ReplaceAllString(fmt.Sprintf(format, v...), "$1")
	if quoted := strings.IndexAny(text, "\"'`"); quoted >= 0 {
		text = text[:quoted] + "..."
	}
	return strings.TrimSpace(text)
}
