package doctor

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

// finding is the outcome of one check. Scripts rely on its JSON: see the command's help.
type finding struct {
	Check string `json:"check"`
	Level level  `json:"level"`
	Text  string `json:"text"`
}

type level string

const (
	levelOK   level = "ok"
	levelWarn level = "warn"
	levelFail level = "fail"
)

// examination collects findings. If it has an output, it prints each finding at once.
type examination struct {
	findings []finding
	out      io.Writer // nil prints nothing
}

func (e *examination) ok(check, format string, args ...any)   { e.add(check, levelOK, format, args) }
func (e *examination) warn(check, format string, args ...any) { e.add(check, levelWarn, format, args) }
func (e *examination) fail(check, format string, args ...any) { e.add(check, levelFail, format, args) }

func (e *examination) add(check string, l level, format string, args []any) {
	f := finding{check, l, render.OneLine(fmt.Errorf(format, args...))}
	e.findings = append(e.findings, f)
	if e.out != nil {
		fmt.Fprintf(e.out, "%-4s  %-11s  %s\n", l.shown(), check, f.Text)
	}
}

// shown is the level as printed. Failures are in capitals, to catch the eye.
func (l level) shown() string {
	if l == levelFail {
		return strings.ToUpper(string(l))
	}
	return string(l)
}

func (e *examination) failed(check string) bool { return e.has(check, levelFail) }
func (e *examination) warned(check string) bool { return e.has(check, levelWarn) }

func (e *examination) has(check string, l level) bool {
	return slices.ContainsFunc(e.findings, func(f finding) bool { return f.Check == check && f.Level == l })
}

func (e *examination) count(l level) (n int) {
	for _, f := range e.findings {
		if f.Level == l {
			n++
		}
	}
	return n
}

// verdict returns an error if any check has failed.
func (e *examination) verdict() error {
	if n := e.count(levelFail); n > 0 {
		return fmt.Errorf("%d of %d checks failed", n, len(e.findings))
	}
	return nil
}

func (e *examination) printJSON(out io.Writer) error {
	return render.JSON(out, struct {
		Failed int       `json:"failed"`
		Warned int       `json:"warned"`
		Checks []finding `json:"checks"`
	}{e.count(levelFail), e.count(levelWarn), e.findings}, "  ")
}
