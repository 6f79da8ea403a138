package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// Summarize prints what happened, for somebody who sees the product for the first time. store is
// empty if it was temporary.
func (d *Demo) Summarize(ctx context.Context, out io.Writer, s worker.Snapshot, store string) error {
	letters, err := d.deadLetters()
	if err != nil {
		return err
	}
	users, same, err := d.sameProfiles(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(out)
	d.printDeliveries(out, s, len(letters))
	printDeadLetters(out, letters)
	if !same {
		return errors.New("a user's profile differs from what one call per event would have produced: please report this")
	}
	fmt.Fprintf(out, "Profiles: all %d are what one call per event would have produced: ok\n", users)
	printNext(out, letters, store)
	return nil
}

func (d *Demo) printDeliveries(out io.Writer, s worker.Snapshot, dead int) {
	stats := d.api.Stats()
	fmt.Fprintf(out, "Events: %s published in %s, %s delivered, %s stored as dead letters, none lost\n",
		render.Thousands(len(d.sample)), d.published.Round(100*time.Millisecond), render.Thousands(s.Delivered), render.Thousands(dead))
	fmt.Fprintf(out, "Calls: %s in %s, because %s events were merged into another call of the same user\n",
		render.Thousands(s.Calls), d.delivered.Round(100*time.Millisecond), render.Thousands(s.Merged))
	if d.Rate.Unlimited() {
		return
	}
	fmt.Fprintf(out, "Rate: at most %s calls in any %s, %s allowed\n",
		render.Thousands(stats.MaxInWindow), d.Rate.Window, render.Thousands(d.Rate.Calls))
	fmt.Fprintf(out, "Faults: %s asked for a cooldown, %s failed; no event was lost or reordered\n",
		render.Counted(stats.ByStatus[429], "answer"), render.Counted(stats.ByStatus[500]+stats.ByStatus[503], "call"))
}

func printDeadLetters(out io.Writer, letters []*nats.Msg) {
	reasons := map[string]int{}
	examples := map[string]string{}
	for _, m := range letters {
		reason := m.Header.Get("Dead-Reason")
		reasons[reason]++
		examples[reason] = m.Header.Get("Dead-Error")
	}
	fmt.Fprintln(out, "Dead letters:")
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		fmt.Fprintf(out, "  %d %-18s such as: %s\n", reasons[reason], reason, examples[reason])
	}
}

// printNext shows one dead letter, and how to use the real API.
func printNext(out io.Writer, letters []*nats.Msg, store string) {
	if len(letters) > 0 {
		fmt.Fprintf(out, "\nA dead letter is the original event, with headers that say what happened. For example:\n")
		printMessage(out, letters[0])
	}
	if store != "" {
		fmt.Fprintf(out, "They are kept in %s. To inspect them, run `USERPILOT_API_KEY=any identify-worker up --store %s`\nand, in another terminal, `identify-worker dlq stats`.\n", store, store)
	} else {
		fmt.Fprintf(out, "This demo's store was temporary. To keep one, use --store DIR; then run\n`USERPILOT_API_KEY=any identify-worker up --store DIR` and, in another terminal, `identify-worker dlq stats`.\n")
	}
	fmt.Fprint(out, `
To send to the real API:
  USERPILOT_API_KEY=... identify-worker up
  identify-worker publish users.csv
In the EU also set USERPILOT_ENDPOINT=https://analytex-eu.userpilot.io
`)
}

func printMessage(out io.Writer, m *nats.Msg) {
	fmt.Fprintf(out, "  subject: %s\n", m.Subject)
	for _, name := range slices.Sorted(maps.Keys(m.Header)) {
		if strings.HasPrefix(name, "Dead-") {
			fmt.Fprintf(out, "  %s: %s\n", name, m.Header.Get(name))
		}
	}
	fmt.Fprintf(out, "  %s\n", m.Data)
}

func equalProfiles(a, b userpilottest.Profile) bool {
	return a.Company == b.Company && maps.EqualFunc(a.Properties, b.Properties, slices.Equal)
}
