package publish

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
)

// cases is a file of other people's, which is not in this repository.
func cases(t *testing.T, path ...string) string {
	t.Helper()
	folder := os.Getenv("IDENTIFY_CASES")
	if folder == "" {
		t.Skip("IDENTIFY_CASES names no folder with the cases")
	}
	text, err := os.ReadFile(filepath.Join(append([]string{folder}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Every table of csv-spectrum means what its JSON says.
func TestSpectrum(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"comma_in_quotes", "empty", "empty_crlf", "escaped_quotes", "json", "newlines", "newlines_crlf", "quotes_and_newlines", "simple", "simple_crlf", "utf8"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := cases(t, "csv-spectrum", "csvs", name+".csv")
			var rows []map[string]string
			if err := json.Unmarshal([]byte(cases(t, "csv-spectrum", "json", name+".json")), &rows); err != nil {
				t.Fatal(err)
			}
			o := options()
			header, _, _ := strings.Cut(text, "\n")
			o.columns.userID, _, _ = strings.Cut(strings.TrimSpace(header), ",")
			bodies, bad, whole := readAll(t, name+".csv", text, o)
			if bad != nil || whole != "" {
				t.Fatal(bad, whole)
			}
			var got []map[string]string
			for _, body := range bodies {
				var event struct {
					User     string            `json:"user_id"`
					Metadata map[string]string `json:"metadata"`
				}
				if err := json.Unmarshal([]byte(body), &event); err != nil {
					t.Fatal(err)
				}
				row := map[string]string{o.columns.userID: event.User}
				for _, name := range strings.Split(strings.TrimSpace(header), ",")[1:] {
					row[name] = event.Metadata[name] // an empty cell is left out
				}
				got = append(got, row)
			}
			if fmt.Sprint(got) != fmt.Sprint(rows) {
				t.Errorf("got  %q\nwant %q", got, rows)
			}
		})
	}
}

// The odd files of csvkit are read, or refused in words.
func TestCsvkit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ bodies, bad, whole string }{
		"bad.csv":                          {"", "2: row: has 4 cells, the first row has 3|3: row: has 2 cells, the first row has 3 (see --short-rows)", ""},
		"blanks.csv":                       {`{"metadata":{"b":"NA","c":"N/A","d":"NONE","e":"NULL","f":"."}}`, "", ""},
		"dummy.tsv":                        {`{"user_id":"1","metadata":{"b":"2","c":"3"}}`, "", ""},
		"mac_newlines.csv":                 {`{"user_id":"1","metadata":{"b":"2","c":"3"}}|{"user_id":"Once upon\ra time","metadata":{"b":"5","c":"6"}}`, "", ""},
		"no_header_row.csv":                {"", "", "no column of the name"},
		"null_byte.csv":                    {`{"user_id":"\u0000","metadata":{"b":"2","c":"3"}}`, "", ""},
		"optional_quote_characters.csv":    {`{"user_id":"1","metadata":{"b":"2","c":"3"}}`, "", ""},
		"test_empty_columns.csv":           {`{"user_id":"a"}`, "3: row: has 4 cells, the first row has 5 (see --short-rows)", ""},
		"test_empty_columns_long_row.csv":  {"", "", ""},
		"test_empty_columns_short_row.csv": {"", "", ""},
		"test_latin1.csv":                  {`{"user_id":"1","metadata":{"b":"2","c":"3"}}`, "", "--encoding windows-1252"},
		"test_no_leading_zeroes.csv":       {`{"user_id":"01","metadata":{"b":"00.11","c":"0.1"}}`, "", ""},
		"test_precision.csv":               {`{"user_id":"1.234567"}`, "", ""},
		"test_skip_lines.csv":              {`{"user_id":"1","metadata":{"b":"2","c":"3"}}`, "", ""},
		"test_utf16_big.csv":               {`{"user_id":"1","metadata":{"b":"2","c":"3"}}|{"user_id":"4","metadata":{"b":"5","c":"ʤ"}}`, "", ""},
		"test_utf16_little.csv":            {`{"user_id":"1","metadata":{"b":"2","c":"3"}}|{"user_id":"4","metadata":{"b":"5","c":"ʤ"}}`, "", ""},
		"test_utf8.csv":                    {`{"user_id":"1","metadata":{"bar":"2","baz":"3"}}|{"user_id":"4","metadata":{"bar":"5","baz":"ʤ"}}`, "", ""},
		"test_utf8_bom.csv":                {`{"user_id":"1","metadata":{"bar":"2","baz":"3"}}|{"user_id":"4","metadata":{"bar":"5","baz":"ʤ"}}`, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options()
			o.columns.userID = "a"
			switch {
			case name == "bad.csv":
				o.columns.userID = "column_a"
			case strings.HasPrefix(name, "test_utf8"):
				o.columns.userID = "foo"
			}
			bodies, bad, whole := readAll(t, name, cases(t, "csvkit", name), o)
			if got := strings.Join(bodies, "|"); got != test.bodies && name != "bad.csv" {
				t.Errorf("bodies %q, want %q", got, test.bodies)
			}
			if got := strings.Join(bad, "|"); got != test.bad {
				t.Errorf("bad %q, want %q", got, test.bad)
			}
			if !strings.Contains(whole, test.whole) || (whole == "") != (test.whole == "") {
				t.Errorf("whole %q, want %q", whole, test.whole)
			}
		})
	}
}

// The same three users come from exports of every kind.
func TestExports(t *testing.T) {
	t.Parallel()
	const users = `{"user_id":"ann@example.com","metadata":{"plan":"pro"}}|{"user_id":"bob@example.com","metadata":{"plan":"trial"}}|{"user_id":"cy@example.com","metadata":{"plan":"Zürich – free"}}`
	for name, test := range map[string]struct{ bodies, bad, whole string }{
		"semicolon.csv":            {users, "", ""},
		"tab.tsv":                  {users, "", ""},
		"sep-line.csv":             {users, "", ""},
		"cr-only.csv":              {users, "", ""},
		"utf16le-bom.csv":          {users, "", ""},
		"users.csv.gz":             {users, "", ""},
		"pretty.json":              {users, "", ""},
		"bom-in-the-middle.ndjson": {users + "|" + users, "", ""},
		"cp1252.csv":               {"", "", "line 4: column \"metadata.plan\": is not UTF-8"},
		"headerless.csv":           {"", "", "first row: has no column user_id"},
		"trailing-commas.csv":      {`{"user_id":"ann","metadata":{"plan":"pro"}}|{"user_id":"bob","metadata":{"plan":"trial"}}`, "", ""},
		"two-headers.csv":          {`{"user_id":"ann","metadata":{"plan":"pro"}}|{"user_id":"bob","metadata":{"plan":"trial"}}`, "3: row: repeats", ""},
		"balanced-by-accident.csv": {`{"user_id":"di","metadata":{"plan":"free","note":"ok"}}`, "2: row: a quote that opens in line 2 closes in line 4", ""},
		"unclosed-quote.csv": {`{"user_id":"ann","metadata":{"plan":"pro","note":"ok"}}|{"user_id":"cy","metadata":{"plan":"free","note":"ok"}}|{"user_id":"di","metadata":{"plan":"free","note":"ok"}}|` +
			`{"user_id":"ed","metadata":{"plan":"pro","note":"fine, too"}}|{"user_id":"flo","metadata":{"plan":"pro","note":"ok"}}`, "3: row: a quote that opens in line 3", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := cases(t, "own", name)
			bodies, bad, whole := readAll(t, name, text, options())
			for i, body := range bodies {
				bodies[i] = oneLine(t, body)
			}
			if got := strings.Join(bodies, "|"); got != test.bodies && name != "cp1252.csv" {
				t.Errorf("bodies %q, want %q", got, test.bodies)
			}
			if got := strings.Join(bad, "|"); !strings.HasPrefix(got, test.bad) || (got == "") != (test.bad == "") {
				t.Errorf("bad %q, want %q", got, test.bad)
			}
			if !strings.Contains(whole, test.whole) || (whole == "") != (test.whole == "") {
				t.Errorf("whole %q, want %q", whole, test.whole)
			}
			if name == "cp1252.csv" {
				o := options()
				o.encoding = "windows-1252"
				if bodies, bad, whole := readAll(t, name, text, o); strings.Join(bodies, "|") != users || bad != nil || whole != "" {
					t.Errorf("%q, %q, %q", bodies, bad, whole)
				}
			}
		})
	}
}

// JSONTestSuite, a case in each event: what is JSON is taken, what is not is refused by its line.
func TestJSONTestSuite(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{"jsontestsuite-y.ndjson": true, "jsontestsuite-n.ndjson": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bodies, bad, whole := readAll(t, name, cases(t, "own", name), options())
			if len(bodies) < 90 || bad != nil || whole != "" {
				t.Fatalf("%d lines, %q, %q", len(bodies), bad, whole)
			}
			for _, body := range bodies {
				if _, err := userpilot.Parse([]byte(body)); (err == nil) != want {
					t.Errorf("%.100q: %v", body, err)
				}
			}
		})
	}
}

// naughty are strings that broke somebody's software.
func naughty(t *testing.T) (texts []string) {
	t.Helper()
	if err := json.Unmarshal([]byte(cases(t, "blns", "blns.json")), &texts); err != nil {
		t.Fatal(err)
	}
	return texts
}

// Naughty strings come back from a table and from NDJSON as they were.
func TestNaughtyStrings(t *testing.T) {
	t.Parallel()
	texts := naughty(t)
	rows := [][]string{{"user_id", "text", "more"}}
	var lines strings.Builder
	for i, text := range texts {
		rows = append(rows, []string{fmt.Sprintf("u%d", i), text, text})
		line, err := json.Marshal(map[string]any{"user_id": text, "metadata": map[string]string{text: text}})
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(line, '\n'))
	}
	table, _ := dialect{Delimiter: ",", EOL: "\r\n"}.write(rows)
	bodies, bad, whole := readAll(t, "f.csv", table, options())
	if len(bodies) != len(texts) || bad != nil || whole != "" {
		t.Fatalf("%d of %d, %q, %q", len(bodies), len(texts), bad, whole)
	}
	for i, body := range bodies {
		var event struct {
			Metadata map[string]string `json:"metadata"`
		}
		if err := json.Unmarshal([]byte(body), &event); err != nil || event.Metadata["text"] != texts[i] {
			t.Errorf("%q became %q: %v", texts[i], event.Metadata["text"], err)
		}
	}
	bodies, bad, whole = readAll(t, "f.ndjson", lines.String(), options())
	if len(bodies) != len(texts) || bad != nil || whole != "" {
		t.Fatalf("%d of %d, %q, %q", len(bodies), len(texts), bad, whole)
	}
	var want []string
	for line := range strings.Lines(lines.String()) {
		want = append(want, strings.TrimSuffix(line, "\n"))
	}
	if !slices.Equal(bodies, want) {
		t.Error("lines were changed")
	}
}

func oneLine(t *testing.T, body string) string {
	t.Helper()
	var b strings.Builder
	var event struct {
		User     json.RawMessage `json:"user_id"`
		Metadata json.RawMessage `json:"metadata"`
	}
	if err := json.Unmarshal([]byte(body), &event); err != nil {
		t.Fatal(err)
	}
	var metadata map[string]string
	if err := json.Unmarshal(event.Metadata, &metadata); err != nil || len(metadata) != 1 {
		return body
	}
	fmt.Fprintf(&b, `{"user_id":%s,"metadata":{"plan":%q}}`, event.User, metadata["plan"])
	return b.String()
}
