package publish

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// dryRun returns all that a dry run prints.
func dryRun(t testing.TB, name, text string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := New(&flags.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }})
	cmd.SilenceUsage = true
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append([]string{"--dry-run", "--nats-url", "nats://127.0.0.1:1", path}, args...))
	_ = cmd.ExecuteContext(context.Background()) // prints its error
	return strings.ReplaceAll(out.String(), path, "FILE")
}

// No text holds a cell of any row, whatever is wrong with the table: its quotes, its types, its
// encoding, or that it has no names at all.
func TestNoTextHoldsCells(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		// Each cell has a word that nothing else holds.
		var cells []string
		secret := func() string {
			cells = append(cells, fmt.Sprintf("Zq%03dx", len(cells)))
			return cells[len(cells)-1]
		}
		d := drawDialect(rt)
		rows := [][]string{}
		if rapid.Bool().Draw(rt, "header") {
			rows = append(rows, []string{"user_id", "a:number", "b:bool", "c:date(02/01/2006)", "d", "company.id"})
		}
		noise := rapid.StringOfN(rapid.SampledFrom([]rune("a1,;\t\"\r\n\x00{'<\u202eü@.")), 0, 6, -1)
		for range rapid.IntRange(1, 5).Draw(rt, "rows") {
			var row []string
			for range rapid.SampledFrom([]int{6, 6, 6, 5, 1}).Draw(rt, "cells") {
				value := rapid.SampledFrom([]string{"", "1", "true", "31/12/2025", "x"}).Draw(rt, "value")
				if value == "x" {
					value = noise.Draw(rt, "before") + secret() + noise.Draw(rt, "after")
				}
				row = append(row, value)
			}
			rows = append(rows, row)
		}
		text, _ := d.write(rows)
		if at := rapid.IntRange(0, len(text)).Draw(rt, "break at"); rapid.Bool().Draw(rt, "break") {
			text = text[:at] + rapid.SampledFrom([]string{`"`, "\n", "\xff", "{", ","}).Draw(rt, "with") + text[at:]
		}
		shown := dryRun(t, "users.csv", text, rapid.SampledFrom([]string{"--strict", "--short-rows", "--multiline"}).Draw(rt, "flag"))
		for _, cell := range cells {
			if strings.Contains(shown, cell) {
				rt.Fatalf("%q\n%s", text, shown)
			}
		}
		if strings.IndexFunc(shown, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) >= 0 {
			rt.Fatalf("%q\n%q", text, shown)
		}
	})
}

// Nor do texts about JSON hold its values.
func TestNoTextHoldsValues(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{"user_id":"Zq000x","metadata":{"a":"Zq001x","b":[{"c":"Zq002x"}],"d":1234567},"company":{"id":"Zq003x"}}`,
		`{"user_id":"Zq000x"`, `{"user_id":"Zq000x",}`, "{\"user_id\":\"Zq000x\xff\"}", `[{"user_id":"Zq000x"},Zq001x]`, `"Zq000x"`, "Zq000x\n{}",
		`{"type":"Zq000x","userId":{"a":"Zq001x"}}`, `{"user_id":" Zq000x"}`, "{\n\"user_id\":\"Zq000x\"]",
		`{"id":"1","headers":{"Zq000x":"Zq001x"},"event":{"user_id":"Zq002x"}}`,
	} {
		if shown := dryRun(t, "users.json", text, "--strict"); strings.Contains(shown, "Zq") || strings.Contains(shown, "1234567") {
			t.Errorf("%s\n%s", text, shown)
		}
	}
}
