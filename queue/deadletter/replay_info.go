package deadletter

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// ReplayInfo is what a replayed event carries from its dead letter.
type ReplayInfo struct {
	// Letter names the dead letter that was replayed. It is zero for a copy that was published by
	// other means, for example from an export.
	Letter Position
	// ID is the letter's sequence in the dead-letter stream; 0 if Letter is zero.
	ID uint64
	// Origin is the event's position; zero, before all others, if it cannot be read.
	Origin Position
	// Published is when the event was first published; zero if unknown.
	Published time.Time
	// Replays is how often it has been replayed, including this time.
	Replays int
	// Run identifies the replay that published it.
	Run string
	// Forced asks the worker to apply the event as if it were new, whatever is newer.
	Forced bool
	// Untracked says that newer events since its death were not recorded.
	Untracked bool
	// History describes its earlier deaths, oldest first, one line each.
	History []string

	// Sealed is the mark by which [ReadSealed] recognizes the replay: see [ReplayInfo.Mark].
	Sealed string
}

// The headers of a replayed event. Its next dead letter keeps some of them.
const (
	HeaderReplays   = "Dead-Replays"
	HeaderOrigin    = "Dead-Origin"
	HeaderHistory   = "Dead-History"
	HeaderLetter    = "Dead-Letter"
	HeaderLetterID  = "Dead-Letter-Id"
	HeaderRun       = "Dead-Run"
	HeaderForced    = "Dead-Forced"
	HeaderUntracked = "Dead-Untracked"
	HeaderSeal      = "Dead-Seal"
)

const (
	maxHistory     = 10  // lines; the newest are kept
	maxHistoryLine = 256 // bytes
)

// readReplayInfo reads the headers of an event; nil if it was never a dead letter. Anyone may have
// written them, so nonsense has the least possible effect, and only [ReadSealed] trusts them.
func readReplayInfo(h nats.Header) *ReplayInfo {
	if len(h) == 0 || len(h[HeaderReplays]) == 0 && len(h[HeaderOrigin]) == 0 {
		return nil
	}
	p := &ReplayInfo{
		Replays: replays(h), Run: jsapi.Clean(h.Get(HeaderRun)), History: shortHistory(h[HeaderHistory]),
		Forced: h.Get(HeaderForced) != "", Untracked: h.Get(HeaderUntracked) != "",
		Sealed: h.Get(HeaderSeal),
	}
	p.Letter, _ = ParsePosition(h.Get(HeaderLetter))
	p.ID, _ = strconv.ParseUint(h.Get(HeaderLetterID), 10, 64)
	p.Origin, _ = ParsePosition(h.Get(HeaderOrigin))
	p.Published, _ = time.Parse(time.RFC3339Nano, h.Get(HeaderPublishedAt))
	return p
}

// Size is its approximate memory use in bytes; 0 for nil.
func (p *ReplayInfo) Size() int {
	if p == nil {
		return 0
	}
	size := 256 + len(p.Run) + len(p.Sealed)
	for _, line := range p.History {
		size += 16 + len(line)
	}
	return size
}

// Header encodes p into the headers that [ReadSealed] reads.
func (p *ReplayInfo) Header() nats.Header {
	h := nats.Header{}
	h.Set(HeaderLetter, p.Letter.String())
	h.Set(HeaderLetterID, strconv.FormatUint(p.ID, 10))
	h.Set(HeaderOrigin, p.Origin.String())
	h.Set(HeaderReplays, strconv.Itoa(p.Replays))
	h.Set(HeaderRun, p.Run)
	h.Set(HeaderSeal, p.Sealed)
	if !p.Published.IsZero() {
		h.Set(HeaderPublishedAt, p.Published.UTC().Format(time.RFC3339Nano))
	}
	if p.Forced {
		h.Set(HeaderForced, "true")
	}
	if p.Untracked {
		h.Set(HeaderUntracked, "true")
	}
	p.writeHistory(h)
	return h
}

// Options returns the options that publish a letter's event with p. The event goes into the plain
// partition if it died there: elsewhere it could overtake events that its user's publisher still
// sends to that partition. It stays in its trace.
//
// A replay does not wait for other replays of its user, which would cost a round trip each. Their
// order does not matter, because the user's version record holds what newer events have set. It
// does wait where there is no such record or the replay ignores it.
func (p *ReplayInfo) Options(l *Letter) []queue.PublishOption {
	h := p.Header()
	queue.ReadTrace(l.Header).Write(h)
	options := []queue.PublishOption{queue.WithHeader(h)}
	if l.Partition == queue.PlainPartition {
		options = append(options, queue.WithoutKey())
	}
	if !p.Letter.IsZero() && !p.Forced && !p.Untracked {
		options = append(options, queue.WithoutOrder())
	}
	return options
}

func (p *ReplayInfo) writeHistory(h nats.Header) {
	if lines := shortHistory(p.History); len(lines) > 0 {
		h[HeaderHistory] = lines
	}
}

// shortHistory returns the newest lines, each shortened.
func shortHistory(lines []string) []string {
	lines = slices.Clone(lines[max(0, len(lines)-maxHistory):])
	for i, line := range lines {
		lines[i] = strings.Clone(jsapi.Cut(jsapi.Clean(line), maxHistoryLine)) // a substring would keep the whole line in memory
	}
	return lines
}

// replays reads how often an event was replayed before. Anyone may have written the header, so
// nonsense counts as zero.
func replays(h nats.Header) int {
	if len(h) == 0 {
		return 0
	}
	if n := jsapi.Atoi(h.Get(HeaderReplays)); n <= 1_000_000 {
		return n
	}
	return 0
}
