//go:build !noembed

package deadletter

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
)

// Any publisher can write an origin. It can make an event older than its place in the stream, and
// so weaker, but never newer: then it would overwrite later events.
func TestOriginIsNeverNewer(t *testing.T) {
	t.Parallel()
	own := Position{made, 7}
	for name, test := range map[string]struct {
		past *ReplayInfo
		want Position
	}{
		"never dead":              {nil, own},
		"replayed":                {&ReplayInfo{Origin: Position{made, 3}}, Position{made, 3}},
		"of an earlier stream":    {&ReplayInfo{Origin: Position{made.Add(-1), 900}}, Position{made.Add(-1), 900}},
		"unreadable":              {&ReplayInfo{}, Position{}},
		"forced":                  {&ReplayInfo{Origin: Position{made, 3}, Forced: true}, own},
		"forged, the next event":  {&ReplayInfo{Origin: Position{made, 8}}, own},
		"forged, a later stream":  {&ReplayInfo{Origin: Position{made.Add(1), 1}}, own},
		"forged, the very newest": {&ReplayInfo{Origin: Position{made.AddDate(100, 0, 0), 1 << 60}}, own},
	} {
		d := Event{Name: Position{made, 7}, Replay: test.past}
		if got := d.Position(); got.Compare(test.want) != 0 {
			t.Errorf("%s: its position is %v, want %v", name, got, test.want)
		}
		if late := test.want.Compare(own) < 0; d.IsLate() != late {
			t.Errorf("%s: it is late: %t", name, !late)
		}
	}
}

// The headers kept of an event take no more memory than is counted for them, whatever they contain.
func TestHeadersAreCounted(t *testing.T) {
	kept := func(names ...string) (counted, taken int) {
		const events = 2000
		past, traces := make([]*ReplayInfo, events), make([]*queue.Trace, events)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range events {
			h := nats.Header{}
			for _, name := range names {
				for range 12 {
					h.Add(name, fmt.Sprint(i)+strings.Repeat("x", 128-10)+strings.Repeat("\u00e9", 2000)[:2*len(name)%300])
				}
			}
			h[HeaderHistory] = nil
			for range 12 {
				h.Add(HeaderHistory, fmt.Sprint(i)+strings.Repeat("y", 5000))
			}
			past[i], traces[i] = readReplayInfo(h), queue.ReadTrace(h)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		for i := range events {
			counted += past[i].Size() + traces[i].Size()
		}
		runtime.KeepAlive(past)
		runtime.KeepAlive(traces)
		return counted, int(after.HeapAlloc) - int(before.HeapAlloc)
	}
	counted, taken := kept(HeaderReplays, HeaderOrigin, HeaderRun, HeaderLetter, "traceparent", "tracestate")
	if counted == 0 || taken > counted*5/4 {
		t.Errorf("%d bytes are counted, and %d taken", counted, taken)
	}
}
