//go:build !noembed && unix

package inspector

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/embedded"
)

// BenchmarkDeadLetters reads 100,000 complete letters of 1 KiB, with the server in this process.
func BenchmarkDeadLetters(b *testing.B) {
	benchmarkLetters(b, func(q *queue.Queue) (n uint64, err error) {
		for _, err := range New(q).DeadLetters(b.Context(), Filter{}) {
			if err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	})
}

// BenchmarkDeadStats groups them.
func BenchmarkDeadStats(b *testing.B) {
	benchmarkLetters(b, func(q *queue.Queue) (n uint64, err error) {
		groups, err := New(q).DeadStats(b.Context(), Filter{})
		for _, g := range groups {
			n += g.Count
		}
		return n, err
	})
}

func benchmarkLetters(b *testing.B, read func(*queue.Queue) (uint64, error)) {
	b.Helper()
	const letters = 100_000
	_, q := lettersServer(b, letters)
	used := processorTime(b)
	for b.Loop() {
		if n, err := read(q); err != nil || n != letters {
			b.Fatal(n, err)
		}
	}
	all := float64(letters * b.N)
	b.ReportMetric(all/b.Elapsed().Seconds(), "letters/s")
	b.ReportMetric(float64((processorTime(b)-used).Nanoseconds())/all, "cpu-ns/letter")
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// statsOf is the environment variable that makes a process group the letters of a server.
const statsOf = "QUEUE_TEST_STATS_OF"

// BenchmarkDeadStatsMemory groups 1,000,000 letters of 100,000 users in a process of its own, and
// reports its peak memory.
func BenchmarkDeadStatsMemory(b *testing.B) {
	const letters = 1_000_000
	server, _ := lettersServer(b, letters)
	for b.Loop() {
		reader := exec.CommandContext(b.Context(), os.Args[0], "-test.run", "^TestDeadStatsOf$", "-test.v")
		reader.Env = append(os.Environ(), statsOf+"="+server.ClientURL())
		out, err := reader.CombinedOutput()
		if err != nil || !strings.Contains(string(out), fmt.Sprintf("%d letters", letters)) {
			b.Fatalf("%v: %s", err, out)
		}
		_, told, _ := strings.Cut(string(out), "with ")
		var mebibytes float64
		if _, err := fmt.Sscan(told, &mebibytes); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(mebibytes, "MiB")
		b.ReportMetric(letters/b.Elapsed().Seconds(), "letters/s")
	}
}

// TestDeadStatsOf is the process of that benchmark.
func TestDeadStatsOf(t *testing.T) {
	url := os.Getenv(statsOf)
	if url == "" {
		t.Skip("this belongs to a benchmark")
	}
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := New(q).DeadStats(t.Context(), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	letters := uint64(0)
	for _, g := range groups {
		letters += g.Count
	}
	// Not the system's maximum: for a child process that includes its parent's.
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	t.Logf("%d letters in %d groups, with %d MiB", letters, len(groups), memory.Sys>>20)
}

// lettersServer stores this many dead letters of 1 KiB, of a tenth as many users, in 30 groups.
func lettersServer(b *testing.B, letters int) (*embedded.Server, *queue.Queue) {
	b.Helper()
	server, q := benchServer(b)
	filler, died := strings.Repeat("x", 950), time.Now().Add(-time.Hour)
	for i := range letters {
		user := fmt.Sprintf("user-%d", i%(letters/10))
		age := deadletter.Position{Stream: died, Sequence: uint64(i + 1)}
		death := deadletter.Death{
			Reason: deadletter.Rejected, Status: 422, Code: "E1", RequestID: fmt.Sprintf("01HV-%d", i), Attempts: 1, User: user,
			Error: fmt.Sprintf("metadata.%s: value %q of %s@example.com is not allowed", strings.Repeat("k", 1+i%30), "pro", user),
		}
		died = died.Add(time.Millisecond)
		if _, err := q.API().JetStream.PublishMsgAsync(&nats.Msg{
			Subject: deadletter.Subject(q.Topology(), deadletter.Rejected, age, user),
			Header:  death.Headers(deadletter.Event{Name: age, Partition: "3", Published: age.Stream}, died),
			Data:    fmt.Appendf(nil, `{"user_id":%q,"metadata":{"plan":"pro","filler":%q}}`, user, filler),
		}); err != nil {
			b.Fatal(err)
		}
		if i%1000 == 999 {
			<-q.API().JetStream.PublishAsyncComplete()
		}
	}
	<-q.API().JetStream.PublishAsyncComplete()
	return server, q
}
