package flags

import (
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// LogSettings say how to log. Logs go to stderr and never hold a user's data.
type LogSettings struct{ format, level string }

// NewLogSettings adds the flags that say how to log.
func NewLogSettings(f Set) *LogSettings {
	s := &LogSettings{format: "text", level: "info"}
	f.Choice(&s.format, "log-format", "format of the log on stderr", "text", "json")
	f.Choice(&s.level, "log-level", "minimum level to log", "debug", "info", "warn", "error")
	return s
}

func (s *LogSettings) handler(w io.Writer) slog.Handler {
	var level slog.Level
	_ = level.UnmarshalText([]byte(s.level)) // one of the choices
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: readable}
	if s.json() {
		return slog.NewJSONHandler(w, options)
	}
	return slog.NewTextHandler(w, options)
}

func (s *LogSettings) json() bool { return s.format == "json" }

// readable is a slog.HandlerOptions.ReplaceAttr. It explains errors, and writes durations as text:
// slog's JSON has them as nanoseconds.
func readable(groups []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	return explain(groups, a)
}

// LoggedError is an error that is in the log already.
type LoggedError struct{ error }

// Unwrap returns the error.
func (e LoggedError) Unwrap() error { return e.error }

// EndInLog makes the last error of a command that runs for long a line of its log if the log is
// JSON, for whoever collects it: see [Env.Ended].
func EndInLog(cmd *cobra.Command, env *Env, logs *LogSettings) {
	if env.ends == nil {
		env.ends = map[*cobra.Command]*LogSettings{}
	}
	env.ends[cmd] = logs
}

// Ended logs the error with which a command has ended, if its log is to have it, also if its flags or
// environment were wrong and it has not begun: the error is then a [LoggedError].
func (e *Env) Ended(cmd *cobra.Command, err error) error {
	logs := e.ends[cmd]
	if err == nil || logs == nil || !logs.json() {
		return err
	}
	e.Logger(logs, e.Stderr).Error("the worker has ended", slog.Any("error", err))
	return LoggedError{err}
}

// libraryLog replaces the output of Go's standard logger. It reports that a library wrote
// something, but not the text: net/http quotes there what a server sent unasked, which can contain
// users' data and even the key.
type libraryLog struct {
	log *slog.Logger

	mu    sync.Mutex
	lines int       // since the last one of ours
	next  time.Time // when that may be followed by another
}

// libraryPause is the least time between two lines.
const libraryPause = time.Minute

// Write implements [io.Writer].
func (l *libraryLog) Write(p []byte) (int, error) {
	if lines := l.count(time.Now()); lines > 0 {
		l.log.Warn("a library logged messages, for example about an unsolicited response; they are not shown because they may contain users' data", slog.Int("times", lines))
	}
	return len(p), nil
}

// count returns how many lines there were since the last report, if another one is due.
func (l *libraryLog) count(now time.Time) (lines int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines++
	if now.Before(l.next) {
		return 0
	}
	lines, l.lines, l.next = l.lines, 0, now.Add(libraryPause)
	return lines
}
