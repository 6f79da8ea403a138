package queue

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Past is what a replayed event brings along from when it was a dead letter.
type Past struct {
	// Letter names the dead letter that was replayed. It is zero for a
	// copy that was published by other means, say from an export.
	Letter Age
	// ID is the letter's sequence in the dead-letter stream; 0 as with Letter.
	ID uint64
	// Origin is how old the event is; zero, older than all, if that cannot be read.
	Origin Age
	// Published is when it was first published; zero if that is not known.
	Published time.Time
	// Replays is how often it has been replayed, this time included.
	Replays int
	// Run is the replay that published it.
	Run string
	// Forced asks to apply it as if it were new, whatever is newer.
	Forced bool
	// Untracked says that nobody has written down what newer events set since it died.
	Untracked bool
	// History tells of its earlier deaths, oldest first, a line for each.
	History []string

	sealed string // what proves it, see readSealed
}

// Headers of a replayed event, and those of them that its next dead letter keeps.
const (
	headerReplays   = "Dead-Replays"
	headerOrigin    = "Dead-Origin"
	headerHistory   = "Dead-History"
	headerLetter    = "Dead-Letter"
	headerLetterID  = "Dead-Letter-Id"
	headerRun       = "Dead-Run"
	headerForced    = "Dead-Forced"
	headerUntracked = "Dead-Untracked"
	headerSeal      = "Dead-Seal"
)

const (
	maxHistory     = 10  // lines, the newest
	maxHistoryLine = 256 // bytes
)

// readPast reads the headers of an event; nil for one that was never dead. They may come from
// anyone, so nonsense counts as little as can be, and only [readSealed] believes them.
func readPast(h nats.Header) *Past {
	if len(h) == 0 || len(h[headerReplays]) == 0 && len(h[headerOrigin]) == 0 {
		return nil
	}
	p := &Past{
		Replays: replays(h), Run: clean(h.Get(headerRun)), History: shortHistory(h[headerHistory]),
		Forced: h.Get(headerForced) != "", Untracked: h.Get(headerUntracked) != "",
		sealed: h.Get(headerSeal),
	}
	p.Letter, _ = ParseAge(h.Get(headerLetter))
	p.ID, _ = strconv.ParseUint(h.Get(headerLetterID), 10, 64)
	p.Origin, _ = ParseAge(h.Get(headerOrigin))
	p.Published, _ = time.Parse(time.RFC3339Nano, h.Get(headerPublishedAt))
	return p
}

// Size is about how much memory it takes; 0 for nil.
func (p *Past) Size() int {
	if p == nil {
		return 0
	}
	size := 256 + len(p.Run) + len(p.sealed)
	for _, line := range p.History {
		size += 16 + len(line)
	}
	return size
}

// header is what readPast reads.
func (p *Past) header() nats.Header {
	h := nats.Header{}
	h.Set(headerLetter, p.Letter.String())
	h.Set(headerLetterID, strconv.FormatUint(p.ID, 10))
	h.Set(headerOrigin, p.Origin.String())
	h.Set(headerReplays, strconv.Itoa(p.Replays))
	h.Set(headerRun, p.Run)
	h.Set(headerSeal, p.sealed)
	if !p.Published.IsZero() {
		h.Set(headerPublishedAt, p.Published.UTC().Format(time.RFC3339Nano))
	}
	if p.Forced {
		h.Set(headerForced, "true")
	}
	if p.Untracked {
		h.Set(headerUntracked, "true")
	}
	p.writeHistory(h)
	return h
}

func (p *Past) writeHistory(h nats.Header) {
	if lines := shortHistory(p.History); len(lines) > 0 {
		h[headerHistory] = lines
	}
}

// shortHistory returns the newest of the lines, each shortened.
func shortHistory(lines []string) []string {
	lines = slices.Clone(lines[max(0, len(lines)-maxHistory):])
	for i, line := range lines {
		lines[i] = strings.Clone(cut(clean(line), maxHistoryLine)) // or it would keep what was cut off
	}
	return lines
}

// cut shortens text to a number of bytes, between two characters.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "")
}

// replays reads how often an event was a dead letter before. The header may come from
// anyone, so nonsense counts as none.
func replays(h nats.Header) int {
	if len(h) == 0 {
		return 0
	}
	if n := atoi(h.Get(headerReplays)); n <= 1_000_000 {
		return n
	}
	return 0
}
