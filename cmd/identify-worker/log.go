package main

import (
	"io"
	"log/slog"
	"os"

	"golang.org/x/term"
)

// logSettings say how to log. Logs go to stderr and never hold a user's data.
type logSettings struct{ format, level string }

func newLogSettings(f flags) *logSettings {
	s := &logSettings{format: "text", level: "info"}
	f.choice(&s.format, "log-format", "how logs are written, to stderr", "text", "json")
	f.choice(&s.level, "log-level", "least level that is logged", "debug", "info", "warn", "error")
	return s
}

func (s *logSettings) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(s.level)) // one of the choices
	options := &slog.HandlerOptions{Level: level}
	if s.format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// isTerminal reports whether a person looks at w, or types into it.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
