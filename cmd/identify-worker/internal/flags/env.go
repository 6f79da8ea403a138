package flags

import (
	"context"
	"io"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue/asynclog"
)

// Env is the part of the process that a command uses. All commands share one.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Version        string // of the program

	loggers []*slog.Logger                  // written out by FlushLogs
	ends    map[*cobra.Command]*LogSettings // of commands whose last error belongs in the log
}

// Logger returns a logger that never blocks. FlushLogs writes what it still holds.
func (e *Env) Logger(s *LogSettings, w io.Writer) *slog.Logger {
	logger := asynclog.Wrap(slog.New(s.handler(w)))
	e.loggers = append(e.loggers, logger)
	if e.Stderr == io.Writer(os.Stderr) { // the process's own, and no test's; w may be a screen on it
		log.SetOutput(&libraryLog{log: logger})
	}
	return logger
}

// flushTimeout is how long FlushLogs waits for a log without a reader.
const flushTimeout = 2 * time.Second

// FlushLogs writes what was logged. It is called once, when the command has ended.
func (e *Env) FlushLogs() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	for _, logger := range e.loggers {
		asynclog.Flush(ctx, logger)
	}
}
