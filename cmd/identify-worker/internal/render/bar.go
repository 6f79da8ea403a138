package render

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Bar is a progress bar. If the output is not a terminal it shows nothing.
type Bar struct{ bar *progressbar.ProgressBar }

// NewBytesBar makes a bar of bytes. Their total is -1 if it is not known.
func NewBytesBar(out io.Writer, total int64) *Bar {
	return newBar(out, total, progressbar.OptionShowBytes(true))
}

// NewCountBar makes a bar of things that are counted.
func NewCountBar(out io.Writer, total int64) *Bar {
	return newBar(out, total, progressbar.OptionShowCount())
}

func newBar(out io.Writer, total int64, unit progressbar.Option) *Bar {
	if !IsTerminal(out) {
		return &Bar{}
	}
	return &Bar{progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(out),
		unit,
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionFullWidth(),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

// Describe sets the text before the bar.
func (b *Bar) Describe(text string) {
	if b.bar != nil {
		b.bar.Describe(text)
	}
}

// Set says how much is done.
func (b *Bar) Set(done int64) {
	if b.bar != nil {
		_ = b.bar.Set64(done)
	}
}

// Clear removes the bar until it is set again.
func (b *Bar) Clear() {
	if b.bar != nil {
		_ = b.bar.Clear()
	}
}
