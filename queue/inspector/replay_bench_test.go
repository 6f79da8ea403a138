//go:build !noembed

package inspector

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/embedded"
)

// benchServer has an empty pipeline, in this process and without syncing.
func benchServer(b *testing.B) (*embedded.Server, *queue.Queue) {
	b.Helper()
	server, err := embedded.Start(embedded.Config{Dir: b.TempDir(), Listen: "127.0.0.1:0", NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Shutdown)
	nc, err := server.Connect()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := q.Setup(b.Context(), false); err != nil {
		b.Fatal(err)
	}
	return server, q
}

// benchLetters is a pipeline with n dead letters of 1 KiB, each for another user.
func benchLetters(b *testing.B, letters int) *queue.Queue {
	b.Helper()
	_, q := benchServer(b)
	filler := strings.Repeat("x", 950)
	for i := range letters {
		age, user := deadletter.Position{Stream: made, Sequence: uint64(i + 1)}, fmt.Sprint("u", i)
		_, err := q.API().JetStream.PublishMsgAsync(&nats.Msg{
			Subject: deadletter.Subject(q.Topology(), deadletter.Rejected, age, user),
			Header:  deadletter.Death{Reason: deadletter.Rejected, Status: 422, Error: "no such plan", User: user}.Headers(deadletter.Event{Name: age, Partition: "3"}, made),
			Data:    fmt.Appendf(nil, `{"user_id":%q,"metadata":{"n":1,"filler":%q}}`, user, filler),
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	<-q.API().JetStream.PublishAsyncComplete()
	return q
}

// BenchmarkReplay replays 100,000 dead letters at once.
func BenchmarkReplay(b *testing.B) {
	const letters = 100_000
	for name, c := range map[string]SelectConfig{"as they are": {}, "edited": {Edit: edit}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				q := benchLetters(b, letters)
				b.StartTimer()
				begun := time.Now()
				selection, err := New(q).Select(b.Context(), Filter{}, c)
				if err != nil {
					b.Fatal(err)
				}
				selected := time.Since(begun)
				result, err := New(q).Replay(b.Context(), selection, ReplayConfig{})
				if err != nil || result.Replayed != letters {
					b.Fatalf("%+v, %v", result, err)
				}
				b.ReportMetric(letters/selected.Seconds(), "selected/s")
				b.ReportMetric(letters/(time.Since(begun)-selected).Seconds(), "replayed/s")
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				b.ReportMetric(float64(m.Sys>>20), "MiB")
			}
		})
	}
}

// BenchmarkDiscard discards 100,000 dead letters.
func BenchmarkDiscard(b *testing.B) {
	const letters = 100_000
	for b.Loop() {
		b.StopTimer()
		q := benchLetters(b, letters)
		selection, err := New(q).Select(b.Context(), Filter{}, SelectConfig{})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		begun := time.Now()
		if result, err := New(q).Discard(b.Context(), selection, DiscardConfig{Note: "x"}); err != nil || result.Discarded != letters {
			b.Fatalf("%+v, %v", result, err)
		}
		b.ReportMetric(letters/time.Since(begun).Seconds(), "discarded/s")
	}
}

// BenchmarkPurge searches 100,000 waiting events for a user.
func BenchmarkPurge(b *testing.B) {
	const events = 100_000
	_, q := benchServer(b)
	filler := strings.Repeat("x", 950)
	for i := range events {
		user := fmt.Sprint("u", i)
		if _, err := q.API().JetStream.PublishAsync(q.Topology().Subject(user), fmt.Appendf(nil, `{"user_id":%q,"metadata":{"filler":%q}}`, user, filler)); err != nil {
			b.Fatal(err)
		}
	}
	<-q.API().JetStream.PublishAsyncComplete()
	for b.Loop() {
		begun := time.Now()
		if result, err := New(q).PurgeUser(b.Context(), "u777", PurgeConfig{DryRun: true}); err != nil || result.Waiting != 1 {
			b.Fatalf("%+v, %v", result, err)
		}
		b.ReportMetric(events/time.Since(begun).Seconds(), "events/s")
	}
}
