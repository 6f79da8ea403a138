package publish

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// exportOf is a table of ten columns.
func exportOf(rows int) []byte {
	var b bytes.Buffer
	b.WriteString("user_id,name,email,plan,seats:number,active:bool,city,zip,company.id,company.name\n")
	for i := range rows {
		fmt.Fprintf(&b, "user-%d,\"Example, Ann %d\",ann.%d@example.com,pro,%d,true,Köln,0%d,c-%d,Acme %d\n", i, i, i, i%50, 10000+i%90000, i%1000, i%1000)
	}
	return b.Bytes()
}

// BenchmarkDryRun checks a million rows: the goal is less than 3 s on two cores.
func BenchmarkDryRun(b *testing.B) {
	name := filepath.Join(b.TempDir(), "users.csv")
	const rows = 1_000_000
	if err := os.WriteFile(name, exportOf(rows), 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var out strings.Builder
		cmd := New(&flags.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: io.Discard, Getenv: func(string) string { return "" }})
		cmd.SetArgs([]string{"--dry-run", name})
		if err := cmd.ExecuteContext(b.Context()); err != nil || !strings.Contains(out.String(), "would publish 1,000,000 events") {
			b.Fatal(err, out.String())
		}
	}
	b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkWideTable reads 60,000 columns: the goal is less than 100 ms.
func BenchmarkWideTable(b *testing.B) {
	var text strings.Builder
	text.WriteString("user_id")
	for i := range 60_000 {
		fmt.Fprintf(&text, ",c%d", i)
	}
	text.WriteString("\nann" + strings.Repeat(",x", 60_000) + "\n")
	for b.Loop() {
		if bodies, bad, whole := readAll(b, "f.csv", text.String(), options()); len(bodies) != 1 || bad != nil || whole != "" {
			b.Fatal(bad, whole)
		}
	}
}
