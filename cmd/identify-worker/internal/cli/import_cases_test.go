//go:build !noembed

package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// profiles are users' properties as Userpilot should have them, as JSON to the byte.
type profiles map[string]map[string]string

func (p profiles) set(user string, properties map[string]string) {
	if p[user] == nil {
		p[user] = map[string]string{}
	}
	maps.Copy(p[user], properties)
}

func quoteJSON(text string) string {
	quoted, _ := jsontext.AppendQuote(nil, text)
	return string(quoted)
}

// casesFolder holds files of other people's, which are not in this repository.
func casesFolder(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("IDENTIFY_CASES")
	if folder == "" {
		t.Skip("IDENTIFY_CASES names no folder with the cases")
	}
	return folder
}

// importing publishes files, one after the other, to a worker whose stand-in is a new one for each.
type importing struct {
	*fixture
	api   atomic.Pointer[userpilottest.Server]
	queue *queue.Queue
}

// Every file that can be read makes exactly the profiles that it means, from the file to Userpilot.
func TestFilesBecomeProfiles(t *testing.T) {
	t.Parallel()
	folder := casesFolder(t)
	i := &importing{fixture: newFixture(t)}
	i.api.Store(userpilottest.New(userpilottest.Options{}))
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { i.api.Load().ServeHTTP(w, r) }))
	t.Cleanup(api.Close)
	i.env["USERPILOT_ENDPOINT"] = api.URL
	var err error
	if i.queue, err = queue.New(i.conn, queue.Topology{}, nil); err != nil {
		t.Fatal(err)
	}
	i.work(func() {
		for _, path := range glob(t, folder, "csv-spectrum/csvs/*.csv") {
			want, user := spectrum(t, path)
			i.becomes(path, nil, want, "--user-id", user)
		}
		for file, want := range exports() {
			i.becomes(filepath.Join(folder, "own", file), want.bad, want.profiles, want.args...)
		}
		path, want := naughtyTable(t, folder)
		i.becomes(path, nil, want)
		lines := filepath.Join(folder, "own", "blns-users.ndjson")
		want, bad := eventsOf(t, lines)
		i.becomes(lines, bad, want)
		i.becomes(filepath.Join(folder, "own", "numbers.ndjson"), []int{2, 3, 4, 5, 6, 7}, profiles{"n1": {
			"a": "9007199254740993", "b": "-0", "c": "1e400", "d": "1.0", "e": "0.1e-400", "f": "123456789012345678901234567890"}})
		i.becomes(filepath.Join(folder, "own", "lone-surrogate.ndjson"), []int{1, 2}, profiles{"cy": {"bio": `"\ud83d\ude00 whole"`}})
		i.becomes(filepath.Join(folder, "own", "jsontestsuite-n.ndjson"), linesOf(t, filepath.Join(folder, "own", "jsontestsuite-n.ndjson")), profiles{})
	})
}

func glob(t *testing.T, folder, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatal("no files: ", pattern, err)
	}
	return paths
}

// becomes publishes a file, and compares what was refused by its lines, and all profiles.
func (i *importing) becomes(path string, bad []int, want profiles, args ...string) {
	t, name := i.t, filepath.Base(path)
	t.Helper()
	api := userpilottest.New(userpilottest.Options{})
	i.api.Store(api)
	report := filepath.Join(t.TempDir(), "errors.txt")
	var out bytes.Buffer
	status := run(t.Context(), append([]string{"publish", path, "--errors", report}, args...), strings.NewReader(""), &out, &out, func(name string) string { return i.env[name] })
	if (status != 0) != (bad != nil) {
		t.Errorf("%s: status %d\n%s", name, status, out.String())
	}
	i.awaitEmpty()
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range bad {
		if at := fmt.Sprintf("%s:%d: ", path, line); !strings.HasPrefix(lineAt(string(text), n), at) {
			t.Errorf("%s: line %d is not refused, but %q", name, line, lineAt(string(text), n))
			break
		}
	}
	if got := strings.Count(string(text), path+":"); got != len(bad) {
		t.Errorf("%s: %d lines are refused, want %d:\n%.1000s", name, got, len(bad), text)
	}
	if got := api.Stats().Users; got != len(want) {
		t.Errorf("%s: %d users, want %d\n%s", name, got, len(want), out.String())
	}
	for user, properties := range want {
		profile, _ := api.Profile(user)
		got := map[string]string{}
		for name, value := range profile.Properties {
			got[name] = string(value)
		}
		if fmt.Sprint(got) != fmt.Sprint(properties) {
			t.Errorf("%s: %q\ngot  %q\nwant %q", name, user, got, properties)
		}
	}
}

func lineAt(text string, n int) string {
	lines := strings.Split(text, "\n")
	return lines[min(n, len(lines)-1)]
}

func (i *importing) awaitEmpty() {
	i.t.Helper()
	var counts queue.Counts
	empty := poll(func() bool {
		var err error
		if counts, err = i.queue.Counts(i.t.Context()); err != nil {
			i.t.Fatal(err)
		}
		return counts.Backlog == 0
	})
	if !empty {
		i.t.Fatalf("%d events wait\n%s", counts.Backlog, i.log.String())
	}
}

// spectrum is what a table of csv-spectrum means, and the column that is taken for the users' ids.
func spectrum(t *testing.T, path string) (want profiles, user string) {
	t.Helper()
	var rows []map[string]string
	text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "..", "json", strings.TrimSuffix(filepath.Base(path), ".csv")+".json"))
	if err == nil {
		err = json.Unmarshal(text, &rows)
	}
	table, errTable := os.ReadFile(path)
	if err != nil || errTable != nil {
		t.Fatal(err, errTable)
	}
	user, _, _ = strings.Cut(string(table), ",")
	want = profiles{}
	for _, row := range rows {
		properties := map[string]string{}
		for name, value := range row {
			if name != user && value != "" {
				properties[name] = quoteJSON(value)
			}
		}
		want.set(row[user], properties)
	}
	return want, user
}

type export struct {
	args     []string
	bad      []int
	profiles profiles
}

// exports are the ordinary exports, and what they mean.
func exports() map[string]export {
	plan := func(text string) map[string]string { return map[string]string{"plan": quoteJSON(text)} }
	three := profiles{"ann@example.com": plan("pro"), "bob@example.com": plan("trial"), "cy@example.com": plan("Zürich – free")}
	two := profiles{"ann": plan("pro"), "bob": plan("trial")}
	with := func(plan, note string) map[string]string {
		return map[string]string{"plan": quoteJSON(plan), "note": quoteJSON(note)}
	}
	return map[string]export{
		"semicolon.csv": {profiles: three}, "tab.tsv": {profiles: three}, "sep-line.csv": {profiles: three}, "cr-only.csv": {profiles: three},
		"utf16le-bom.csv": {profiles: three}, "users.csv.gz": {profiles: three}, "pretty.json": {profiles: three}, "bom-in-the-middle.ndjson": {profiles: three},
		"cp1252.csv":               {args: []string{"--encoding", "windows-1252"}, profiles: three},
		"trailing-commas.csv":      {profiles: two},
		"two-headers.csv":          {bad: []int{3}, profiles: two},
		"balanced-by-accident.csv": {bad: []int{2}, profiles: profiles{"di": with("free", "ok")}},
		"unclosed-quote.csv": {bad: []int{3}, profiles: profiles{
			"ann": with("pro", "ok"), "cy": with("free", "ok"), "di": with("free", "ok"), "ed": with("pro", "fine, too"), "flo": with("pro", "ok")}},
	}
}

// naughtyTable writes the big list of naughty strings as another program writes CSV.
func naughtyTable(t *testing.T, folder string) (path string, want profiles) {
	t.Helper()
	var texts []string
	text, err := os.ReadFile(filepath.Join(folder, "blns", "blns.json"))
	if err == nil {
		err = json.Unmarshal(text, &texts)
	}
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	w := csv.NewWriter(&table)
	rows, want := [][]string{{"user_id", "text", "n:number"}}, profiles{}
	for n, text := range texts {
		user := fmt.Sprintf("u%d", n)
		rows = append(rows, []string{user, text, fmt.Sprint(n)})
		properties := map[string]string{"n": fmt.Sprint(n)}
		if text != "" {
			properties["text"] = quoteJSON(text)
		}
		want.set(user, properties)
	}
	if err := w.WriteAll(rows); err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(t.TempDir(), "naughty.csv"), table.String()), want
}

// eventsOf reads events as another program does: their profiles, and the lines without a user.
func eventsOf(t *testing.T, path string) (want profiles, bad []int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want = profiles{}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		var event struct {
			User     string                     `json:"user_id"`
			Metadata map[string]json.RawMessage `json:"metadata"`
		}
		if err := json.Unmarshal(line, &event); err != nil || event.User == "" {
			bad = append(bad, n)
			continue
		}
		properties := map[string]string{}
		for name, value := range event.Metadata {
			properties[name] = string(value)
		}
		want.set(event.User, properties)
	}
	return want, bad
}

func linesOf(t *testing.T, path string) (all []int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range strings.Split(string(text), "\n") {
		if strings.TrimSpace(line) != "" {
			all = append(all, n+1)
		}
	}
	return all
}
