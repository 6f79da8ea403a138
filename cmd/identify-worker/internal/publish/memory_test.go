package publish

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// growing is a table of rows that all differ, one in ten of them bad. It looks at the heap when it has
// given as many rows as each mark says.
type growing struct {
	marks  []int
	heap   []uint64
	row    int
	unread []byte
}

func (g *growing) Read(p []byte) (int, error) {
	if len(g.heap) == len(g.marks) {
		return 0, io.EOF
	}
	for g.unread = g.unread[:0]; len(g.unread) < len(p)-100; g.row++ {
		switch {
		case g.row == 0:
			g.unread = append(g.unread, "user_id,seats:number,company.id\n"...)
		case g.row%10 == 0:
			g.unread = fmt.Appendf(g.unread, "u%d,bad%d,c%d\n", g.row, g.row, g.row)
		case g.row%10 == 1:
			g.unread = fmt.Appendf(g.unread, "u%d,\"bad\"%d,c%d\n", g.row, g.row, g.row)
		default:
			g.unread = fmt.Appendf(g.unread, "u%d,%d,c%d\n", g.row, g.row, g.row)
		}
	}
	if g.row > g.marks[len(g.heap)] {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		g.heap = append(g.heap, stats.HeapAlloc)
	}
	return copy(p, g.unread), nil
}

// Memory does not grow with the rows, whatever differs between them.
func TestMemoryIsFlat(t *testing.T) { // not parallel: the heap is of the whole process
	rows := &growing{marks: []int{150_000, 600_000}}
	var out strings.Builder
	cmd := New(&flags.Env{Stdin: rows, Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs([]string{"--dry-run"})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.HasSuffix(out.String(), "(120,021 bad lines)\n") {
		t.Fatal(err, out.String())
	}
	if grown := int64(rows.heap[1]) - int64(rows.heap[0]); grown > 1<<20 {
		t.Errorf("the heap has grown by %d bytes after %d rows, %d in all", grown, rows.marks[0], rows.heap[1])
	}
}

// What waits is bounded in bytes, however large the rows are and however well they are compressed.
func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	const largest = 512 << 10
	row := `ann,"` + strings.Repeat("x", largest-100) + "\n\"\n"
	rows := newTable(newScanner(strings.NewReader("user_id,text\n"+strings.Repeat(row, 40)), ',', '\n', false), &columnOptions{})
	for n := 0; ; n++ {
		waiting := 0
		for _, r := range rows.held {
			waiting += len(r.body)
		}
		if waiting > maxHeldBytes {
			t.Fatalf("%d bytes wait after %d rows", waiting, n)
		}
		if _, err := rows.next(); err != nil {
			if !errors.Is(err, io.EOF) || n != 40 {
				t.Fatal(n, err)
			}
			break
		}
	}
	f := &feed{batches: make(chan []record, 100)}
	for range 20 {
		f.add(record{body: make([]byte, largest)})
	}
	if len(f.batches) != 20 {
		t.Errorf("20 large records are handed over in %d batches", len(f.batches))
	}
}
