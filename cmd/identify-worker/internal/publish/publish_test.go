package publish

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/identify-worker/identify-worker/userpilot"
)

// options are the defaults.
func options() sourceOptions { return sourceOptions{format: "auto", encoding: "auto"} }

// readAll lists what is in a file, bad records as "line: what is wrong". whole is what is wrong with
// the file.
func readAll(t testing.TB, name, text string, o sourceOptions) (bodies, bad []string, whole string) {
	t.Helper()
	s, err := openSource(name, strings.NewReader(text), &o)
	last := 0
	for err == nil {
		var r record
		if r, err = s.next(); err != nil {
			break
		}
		switch {
		case r.line < last:
			t.Fatalf("line %d comes after line %d", r.line, last)
		case r.err != nil:
			bad = append(bad, fmt.Sprintf("%d: %v", r.line, r.err))
		default:
			bodies = append(bodies, string(r.body))
		}
		last = r.line
	}
	if !errors.Is(err, io.EOF) {
		whole = err.Error()
	}
	return bodies, bad, whole
}

func TestNDJSON(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLineBytes)
	bodies, bad, whole := readAll(t, "f", byteOrderMark+"{1}\r\n\n  {2}  \n"+long+"y\n{3}\n"+byteOrderMark+long[:maxLineBytes-4]+"\n{4}", options())
	if want := "{1} {2} {3} " + long[:maxLineBytes-4] + " {4}"; strings.Join(bodies, " ") != want || whole != "" {
		t.Errorf("got %d bodies, %s", len(bodies), whole)
	}
	if len(bad) != 1 || bad[0] != "4: line: is longer than 1MiB" {
		t.Errorf("bad: %q", bad)
	}
}

// A record that is too long counts as many lines as it has, whatever ends them.
func TestLinesAfterALongOne(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLineBytes)
	for text, want := range map[string]string{
		"{1}\r" + long + "y\r{3}\r{4":                            "2: line: is longer than 1MiB;4: {4",
		"\x1e{1}\n\x1e{\"a\":\n" + long + "\n}\n\x1e{5}\n\x1e{6": "2: line: is longer than 1MiB;6: {6",
		"{1}\n" + long + "y\n{3}\n{4":                            "2: line: is longer than 1MiB;4: {4",
	} {
		o := options()
		s, err := openSource("f", strings.NewReader(text), &o)
		if err != nil {
			t.Fatal(err)
		}
		bad, last := "", ""
		for r, err := s.next(); err == nil; r, err = s.next() {
			if last = fmt.Sprintf("%d: %s", r.line, r.body); r.err != nil {
				bad = fmt.Sprintf("%d: %v", r.line, r.err)
			}
		}
		if got := bad + ";" + last; got != want {
			t.Errorf("%q...: %s, want %s", text[:8], got, want)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ text, bodies, bad, whole string }{
		"all kinds": {
			"user_id,metadata.plan,metadata.seats:number,metadata.on:bool,company.id\nann,pro,1.50,True,c\n",
			`{"user_id":"ann","metadata":{"plan":"pro","seats":1.50,"on":true},"company":{"id":"c"}}`, "", "",
		},
		"plain names":               {"user_id,email,seats:number\nann,a@b.example,007\nbob,,7\n", `{"user_id":"bob","metadata":{"seats":7}}`, `2: column "seats:number": is not a number such as 12 or 1.5 (see --decimal for 1.234,50)`, ""},
		"a leading zero":            {"user_id,zip\n007,01234\n", `{"user_id":"007","metadata":{"zip":"01234"}}`, "", ""},
		"empty cells are left out":  {"user_id,a,company.id\nann,,\n", `{"user_id":"ann"}`, "", ""},
		"only a company":            {"user_id,a,company.id\nann,,7\n", `{"user_id":"ann","company":{"id":"7"}}`, "", ""},
		"no user":                   {"user_id,a\n,x\n", `{"metadata":{"a":"x"}}`, "", ""},
		"null":                      {"user_id,a:number\nann,NULL\n", `{"user_id":"ann","metadata":{"a":null}}`, "", ""},
		"no company but null":       {"user_id,company.id,company.name\nann,NULL,NULL\nbob,,NULL\ncy,7,NULL\ndi,NULL,x\n", `{"user_id":"ann"}|{"user_id":"bob"}|{"user_id":"cy","company":{"id":"7","name":null}}|{"user_id":"di","company":{"id":null,"name":"x"}}`, "", ""},
		"quotes and lines":          {"user_id,a\nann,\"say \"\"hi\"\"\nto all\"\nbob,x\n", `{"user_id":"ann","metadata":{"a":"say \"hi\"\nto all"}}|{"user_id":"bob","metadata":{"a":"x"}}`, "", ""},
		"CRLF within quotes":        {"user_id,a\r\nann,\"x\r\ny\"\r\n", `{"user_id":"ann","metadata":{"a":"x\r\ny"}}`, "", ""},
		"dots in a name":            {"user_id,metadata.a.b\nann,x\n", `{"user_id":"ann","metadata":{"a.b":"x"}}`, "", ""},
		"a colon in a name":         {"user_id,Note: old,a:b:string\nann,x,y\n", `{"user_id":"ann","metadata":{"Note: old":"x","a:b":"y"}}`, "", ""},
		"byte order mark":           {byteOrderMark + "\"user_id\"\nann\n", `{"user_id":"ann"}`, "", ""},
		"nothing":                   {"", "", "", ""},
		"only names":                {"user_id\n", "", "", ""},
		"lines above":               {"\n\nuser_id,a\n\nann,x\n", `{"user_id":"ann","metadata":{"a":"x"}}`, "", ""},
		"empty columns and rows":    {"user_id,a,,\nann,x,,\n,,,\nbob,y,,z\n", `{"user_id":"ann","metadata":{"a":"x"}}`, "4: column 4: has a value, and no name in the first row", ""},
		"too few cells":             {"user_id,a,b\nann,x\nbob,x,y\n", `{"user_id":"bob","metadata":{"a":"x","b":"y"}}`, "2: row: has 2 cells, the first row has 3 (see --short-rows)", ""},
		"a line feed in the last":   {"user_id,a\ndi,z\nann,x\ny\n\nbob,x\n", `{"user_id":"di","metadata":{"a":"z"}}|{"user_id":"bob","metadata":{"a":"x"}}`, "3: row: may not be whole, as line 4 has a single cell: a cell with a line feed needs quotes|4: row: has 1 cell, the first row has 2 (see --short-rows)", ""},
		"a line feed in the first":  {"user_id,a\nan\nn,x\nbob,x\n", `{"user_id":"bob","metadata":{"a":"x"}}`, "2: row: has 1 cell, the first row has 2 (see --short-rows)|3: row: may not be whole, as line 2 has a single cell: a cell with a line feed needs quotes", ""},
		"an empty cell by itself":   {"user_id,a\nann,x\n\"\"\n", "", "2: row: may not be whole, as line 3 has a single cell: a cell with a line feed needs quotes|3: row: has 1 cell, the first row has 2 (see --short-rows)", ""},
		"too many cells":            {"user_id,a\nann,x,y\nbob,x\n", `{"user_id":"bob","metadata":{"a":"x"}}`, "2: row: has 3 cells, the first row has 2", ""},
		"a quote within a cell":     {"user_id,a\nann,x\"y\nbob,x\n", `{"user_id":"bob","metadata":{"a":"x"}}`, `2: row: has a quote within a cell that does not begin with one, in line 2, column 2; write "15"" wide" for 15" wide`, ""},
		"a quote that stays open":   {"user_id,a\nann,\"x\nbob,x\ncy,\"y, z\"\n", `{"user_id":"bob","metadata":{"a":"x"}}|{"user_id":"cy","metadata":{"a":"y, z"}}`, `2: row: a quote that opens in line 2 is followed in line 4 by one that does not end the cell; write "15"" wide" for 15" wide`, ""},
		"an open quote at the end":  {"user_id,a\nann,\"x\nbob,x\n", `{"user_id":"bob","metadata":{"a":"x"}}`, `2: row: a quote that opens in line 2 does not close`, ""},
		"rows within a cell":        {"user_id,a\nann,\"x\nbob,x\ncy,y\"\ndi,z\n", `{"user_id":"di","metadata":{"a":"z"}}`, `2: row: a quote that opens in line 2 closes in line 4, and between them are lines that look like rows: close the quote, or give --multiline if cells have such lines`, ""},
		"a quote that never opened": {"user_id,a,b\nann,x,y\nz\",w\nbob,x,y\n", `{"user_id":"bob","metadata":{"a":"x","b":"y"}}`, `2: row: may not be what it seems, as a quote is wrong in line 3|3: row: has a quote within a cell that does not begin with one, in line 3, column 1; write "15"" wide" for 15" wide`, ""},
		"the names again":           {"user_id,a\nann,x\nuser_id,a\nbob,y\n", `{"user_id":"ann","metadata":{"a":"x"}}|{"user_id":"bob","metadata":{"a":"y"}}`, "3: row: repeats the columns' names", ""},
		"two files":                 {byteOrderMark + "user_id,a\nann,x\n" + byteOrderMark + "bob,y\n" + byteOrderMark + "user_id,a\ncy,z\n" + byteOrderMark, `{"user_id":"ann","metadata":{"a":"x"}}|{"user_id":"bob","metadata":{"a":"y"}}|{"user_id":"cy","metadata":{"a":"z"}}`, "4: row: repeats the columns' names", ""},
		"a lone carriage return":    {"user_id,a\nann,x\ry\nbob,x\n", `{"user_id":"bob","metadata":{"a":"x"}}`, "2: row: has a carriage return within a cell that is not quoted, in line 2, column 2", ""},
		"not a bool":                {"user_id,a:bool\nann,maybe\nbob,yes\n", `{"user_id":"bob","metadata":{"a":true}}`, `2: column "a:bool": is not true or false`, ""},
		"dates": {
			"user_id,a:date,b:date(02/01/2006),c:date(1/2/06 15:04),d:date(excel)\nann,2026-01-31 10:00:00+02:00,31/12/2025,1/2/26 9:05,46053.5\n",
			`{"user_id":"ann","metadata":{"a":"2026-01-31T10:00:00+02:00","b":"2025-12-31","c":"2026-01-02T09:05:00Z","d":"2026-01-31T12:00:00Z"}}`, "", "",
		},
		"not a date":     {"user_id,b:date(02/01/2006)\nann,12/31/2025\n", "", `2: column "b:date(02/01/2006)": is not a date as "02/01/2006" is`, ""},
		"no layout":      {"user_id,b:date(dd/mm/yyyy)\nann,12/31/2025\n", "", "", `line 1: column "b:date(dd/mm/yyyy)": is not a layout: write 2 January 2006 as the file would, such as :date(02/01/2006), :date(1/2/06) or :date(2006-01-02 15:04); or :date(excel) for serial numbers, :date(unix) for seconds since 1970`},
		"not UTF-8":      {"user_id,a\nann,x\nbob,\xe9\n", `{"user_id":"ann","metadata":{"a":"x"}}`, "", `line 3: column "a": is not UTF-8 (see --encoding): if the file comes from Excel on Windows, give --encoding windows-1252; with --encoding utf-8 such rows are bad lines`},
		"one not UTF-8":  {"user_id,a\nann,é\nbob,\xe9\n", `{"user_id":"ann","metadata":{"a":"é"}}`, `3: column "a": is not UTF-8 (see --encoding)`, ""},
		"no name":        {"user_id,metadata.\nann,x\n", "", "", `line 1: column "metadata.": has no name after the dot`},
		"a numeric user": {"user_id:number\n1\n", "", "", `line 1: column "user_id:number": a user's id is text, whatever it looks like: leave out the type`},
		"unknown type":   {"user_id,a:nmber\n1,2\n", "", "", `line 1: column "a:nmber": ends in an unknown type: the types are :string, :number, :bool, :date or :date(02/01/2006); add :string if the colon is part of the name`},
		"twice":          {"user_id,a,metadata.a:bool\nann,x,true\n", "", "", `line 1: column "metadata.a:bool": appears twice: columns 2 and 3 both become "metadata.a" (see --map and --drop)`},
		"no company":     {"user_id,company.name\nann,x\n", "", "", `line 1: column "company.name": belongs to a company, and there is no column company.id: name the one that has the companies' ids with --company-id`},
		"long name":      {"user_id,\"plan\nann,pro\nbob,\"\ncy,free\n", "", "", `line 1: the name of column 2 has more than one line: a quote is probably missing or too many; give --multiline if the name is right`},
		"other line end": {"user_id,\"plan\nann,pro\n\"\rcy,free\r", "", "", `line 1: the name of column 2 has more than one line: a quote is probably missing or too many; give --multiline if the name is right`},
		"no names":       {"ann@example.com,pro\nbob@example.com,trial\n", "", "", "line 1: first row: has no column user_id; the first row must have the columns' names, and --user-id names the column that has the users' ids (see --delimiter for the separator, --map for other names)"},
		"other names":    {"Name,E-Mail\nAnn,ann@example.com\n", "", "", `line 1: first row: has no column user_id; if column 2 has the users' ids, give --user-id "E-Mail"`},
		"semicolons":     {"user_id;a\nann;x,y\n", `{"user_id":"ann","metadata":{"a":"x,y"}}`, "", ""},
		"tabs":           {"user_id\ta\nann\tx\n", `{"user_id":"ann","metadata":{"a":"x"}}`, "", ""},
		"bars":           {"a|user_id\nx|ann\n", `{"user_id":"ann","metadata":{"a":"x"}}`, "", ""},
		"sep=":           {"sep=;\r\nuser_id;a\r\nann;x\r\n\r\nbob\r\n", `{"user_id":"ann","metadata":{"a":"x"}}`, "5: row: has 1 cell, the first row has 2 (see --short-rows)", ""},
		"CR":             {"user_id,a\rann,x\r\rbob\r\rcy,\"a\rb\"", `{"user_id":"ann","metadata":{"a":"x"}}|{"user_id":"cy","metadata":{"a":"a\rb"}}`, "4: row: has 1 cell, the first row has 2 (see --short-rows)", ""},
		"Segment":        {"userId,traits.plan,groupId\nann,pro,g\n", `{"user_id":"ann","metadata":{"plan":"pro"},"company":{"id":"g"}}`, "", ""},
		"a long row":     {"user_id,a\nann," + strings.Repeat("x", 2<<20) + "\nbob,x\n", `{"user_id":"bob","metadata":{"a":"x"}}`, "2: row: is longer than 1MiB", ""},
		"a long quote":   {"user_id,a\nann,\"" + strings.Repeat(strings.Repeat("x", 511)+"\n", 1<<12) + "\nbob,x\n", "", "", ""},
		"a long cell":    {"user_id,a\n\"ann" + strings.Repeat("x\n", 1<<20) + "\",x\nbob,x\n", "", "", "line 2: row: is longer than 1MiB; where the next row begins cannot be known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options()
			o.columns.null = "NULL"
			bodies, bad, whole := readAll(t, "f.csv", test.text, o)
			if name == "a long quote" {
				if len(bodies) != 1 || len(bad) != 1<<12 || !strings.HasPrefix(bad[0], "2: row: a quote that opens in line 2 does not close within 1MiB") {
					t.Errorf("%d bodies, %d bad", len(bodies), len(bad))
				}
				return
			}
			if got := strings.Join(bodies, "|"); got != test.bodies {
				t.Errorf("bodies %q, want %q", got, test.bodies)
			}
			if got := strings.Join(bad, "|"); got != test.bad {
				t.Errorf("bad %q, want %q", got, test.bad)
			}
			if whole != test.whole {
				t.Errorf("whole %q, want %q", whole, test.whole)
			}
		})
	}
}

// FuzzTable checks that whatever comes out is JSON, that what has a user is an event with that user,
// and that no message holds a cell.
func FuzzTable(f *testing.F) {
	f.Add("user_id,metadata.a:number,metadata.b:bool,company.id\nann,1,true,c\n")
	f.Add("user_id,metadata.\"\n\"\nann")
	f.Add(byteOrderMark + "user_id\n\xff\n\n\"")
	f.Add("sep=;\nuser_id;b:date(2006)\r\n1;\"2\r\n3\"\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		o := options()
		o.format = "csv"
		bodies, _, _ := readAll(t, "f", text, o)
		for _, body := range bodies {
			if !json.Valid([]byte(body)) {
				t.Fatalf("%q is not JSON", body)
			}
			event, err := userpilot.Parse([]byte(body))
			if err == nil && event.UserID() == "" {
				t.Fatalf("%q has no user", body)
			}
		}
	})
}

// FuzzNDJSON checks that the lines that come out are those of the input.
func FuzzNDJSON(f *testing.F) {
	f.Add("{}\n\n {} \r\n{")
	f.Add(byteOrderMark + byteOrderMark)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff") {
			t.Skip("UTF-16, whatever the encoding is said to be")
		}
		o := options()
		o.format, o.encoding = "ndjson", "utf-8"
		bodies, bad, whole := readAll(t, "f", text, o)
		var want []string
		for line := range strings.SplitSeq(strings.TrimPrefix(text, byteOrderMark), "\n") {
			if line = strings.TrimSpace(strings.TrimPrefix(line, byteOrderMark)); line != "" {
				want = append(want, line)
			}
		}
		if len(bad) == 0 && whole == "" && strings.Join(bodies, "\n") != strings.Join(want, "\n") && !strings.Contains(text, "\r") && !strings.Contains(text, "\x1e") {
			t.Fatalf("got %q, want %q", bodies, want)
		}
	})
}

func TestContentIDs(t *testing.T) {
	t.Parallel()
	ids := func(file string, lines ...string) (ids []string) {
		var c contentIDs
		for _, line := range lines {
			ids = append(ids, c.next(file, []byte(line)))
		}
		return ids
	}
	first := ids("f", "pro", "basic", "pro")
	if first[0] == first[2] {
		t.Error("a user's third event would be dropped, as it equals the first")
	}
	again := ids("g", "pro", "basic", "pro", "trial")
	if strings.Join(again[:3], " ") != strings.Join(first, " ") {
		t.Error("a file that has grown gets other ids for what was there")
	}
	var c contentIDs
	c.next("f", []byte("x"))
	if c.next("g", []byte("pro")) != first[0] {
		t.Error("ids depend on the file before")
	}
}

// A quote that opens in one row and an inch sign much later cost these rows, whatever the sign's
// place, and both lines are named.
func TestQuoteAndInchSign(t *testing.T) {
	t.Parallel()
	for name, inch := range map[string]string{"within": `15" wide`, "at the end": `15"`, "before a cell": `a 15",x`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var text strings.Builder
			text.WriteString("user_id,plan,note\n")
			for i := 1; i <= 1000; i++ {
				note := "fine"
				switch i {
				case 10:
					note = `"no end`
				case 900:
					note = inch
				}
				fmt.Fprintf(&text, "u%d,pro,%s\n", i, note)
			}
			bodies, bad, whole := readAll(t, "f.csv", text.String(), options())
			all := strings.Join(bad, "\n")
			if len(bodies) < 999 && len(bad) == 0 || whole != "" || !strings.Contains(all, "line 11") || !strings.Contains(all, "line 901") {
				t.Errorf("%d rows, %q, %s", len(bodies), bad, whole)
			}
			for _, body := range bodies {
				if strings.Contains(body, `\n`) {
					t.Errorf("users were mixed up: %s", body)
				}
			}
		})
	}
}

// What a file is shows in its content, whatever its name.
func TestSource(t *testing.T) {
	t.Parallel()
	table, event := "user_id,a\nann,ü\n", `{"user_id":"ann","metadata":{"a":"ü"}}`
	utf16 := func(text string, first, second int) string {
		var b strings.Builder
		for _, r := range text {
			pair := [2]byte{byte(r >> (8 * first)), byte(r >> (8 * second))}
			b.Write(pair[:])
		}
		return b.String()
	}
	for name, test := range map[string]struct{ file, text, what, bodies, whole string }{
		"table":             {"-", table, "table separated by commas", event, ""},
		"table, odd name":   {"users.ndjson", table, "table separated by commas", event, ""},
		"gzip":              {"-", zipped(t, table), "table separated by commas, gzip", event, ""},
		"gzip of NDJSON":    {"f.csv", zipped(t, event), "NDJSON, gzip", event, ""},
		"a part of gzip":    {"-", zipped(t, table)[:25], "", "", "the gzip file is damaged or not complete: unexpected EOF"},
		"zstd":              {"-", zstded(t, table), "table separated by commas, zstd", event, ""},
		"UTF-16":            {"-", "\xff\xfe" + utf16(table, 0, 1), "table separated by commas, UTF-16", event, ""},
		"UTF-16, big":       {"-", "\xfe\xff" + utf16(table, 1, 0), "table separated by commas, UTF-16", event, ""},
		"UTF-16, unmarked":  {"-", utf16(table, 0, 1), "table separated by commas, UTF-16", event, ""},
		"NDJSON":            {"f.csv", event + "\n" + event, "NDJSON", event + "|" + event, ""},
		"NDJSON with CR":    {"f", event + "\r" + event, "NDJSON", event + "|" + event, ""},
		"a line cut short":  {"f", "{\"user_id\":\n" + event, "NDJSON", `{"user_id":|` + event, ""},
		"array":             {"f", "[\n" + event + ",\n" + event + "]\n", "JSON array", event + "|" + event, ""},
		"an open array":     {"f", "[" + event + ",\n" + event, "JSON array", event + "|" + event, "line 2: is not JSON: the array does not end"},
		"an array of else":  {"f", "[1]", "JSON array", "", "line 1: is not JSON: an object must begin here"},
		"no comma":          {"f", "[" + event + event + "]", "JSON array", event, "line 1: is not JSON: a comma is missing before an object"},
		"objects":           {"f", "{\n\"user_id\":\"}{\\\"\"}{}", "JSON objects over several lines", "{\n\"user_id\":\"}{\\\"\"}|{}", ""},
		"objects on a line": {"f", event + event, "JSON objects over several lines", event + "|" + event, ""},
		"an open object":    {"f", "{}{\n", "JSON objects over several lines", "{}", "line 2: is not JSON: the object that begins in line 1 does not end"},
		"brackets":          {"f", "{\n\"a\":[}", "JSON objects over several lines", "", "line 2: is not JSON: a bracket closes that was not opened"},
		"sequence":          {"f", "\x1e" + event + "\n\x1e{\n}\n", "JSON text sequence (RFC 7464)", event + "|{\n}", ""},
		"XLSX":              {"f.csv", "PK\x03\x04\x14\x00\x06\x00", "", "", `is an Excel workbook or another zip file: in Excel, save it as "CSV UTF-8"; unzip any other`},
		"XLS":               {"f.csv", "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "", "", `is an old Excel workbook: save it as "CSV UTF-8"`},
		"HTML":              {"f.csv", "<!DOCTYPE html>\n<html>", "", "", `is HTML or XML, not a table or JSON: was it saved from a page that asks to log in? If Excel opens it as a table, save it there as "CSV UTF-8"`},
		"binary":            {"f.csv", "ab\x00\x01\x02\x00", "", "", "is not text: it has NUL bytes in its first line; export the data as CSV or NDJSON"},
		"nothing":           {"f.csv", "", "empty", "", ""},
		"blank lines above": {"f", "\n\n\n\n" + table, "table separated by commas", event, ""},
		"only blanks":       {"f.csv", byteOrderMark + "\n \n", "empty", "", ""},
		"nothing, zipped":   {"f.csv", zipped(t, ""), "empty, gzip", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options()
			s, err := openSource(test.file, iotest.OneByteReader(strings.NewReader(test.text)), &o)
			if err == nil && s.what != test.what && test.what != "" {
				t.Errorf("is %s, want %s", s.what, test.what)
			}
			bodies, bad, whole := readAll(t, test.file, test.text, o)
			if got := strings.Join(bodies, "|"); got != test.bodies || whole != test.whole || bad != nil {
				t.Errorf("got %q, %q, %q", got, bad, whole)
			}
		})
	}
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zstded(t *testing.T, text string) string {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(w.EncodeAll([]byte(text), nil))
}

func TestColumns(t *testing.T) {
	t.Parallel()
	const text = "ID;Full name;Account;Account ID;Revenue;Seats\n7;Ann;Acme;a1;1.234,50;12\n"
	for name, test := range map[string]struct {
		columns columnOptions
		event   string
		whole   string
	}{
		"the ids": {columnOptions{userID: "ID"}, `{"user_id":"7","metadata":{"Full name":"Ann","Account":"Acme","Account ID":"a1","Revenue":"1.234,50","Seats":"12"}}`, ""},
		"all": {columnOptions{userID: "ID", companyID: "Account ID", decimal: ',', renamed: map[string]string{"Full name": "name", "Account": "company.name", "Revenue": "revenue:number", "Seats": "company.seats:number"}},
			`{"user_id":"7","metadata":{"name":"Ann","revenue":1234.50},"company":{"name":"Acme","id":"a1","seats":12}}`, ""},
		"a renamed id":   {columnOptions{renamed: map[string]string{"ID": "user_id"}, only: []string{"Seats"}}, `{"user_id":"7","metadata":{"Seats":"12"}}`, ""},
		"typed":          {columnOptions{renamed: map[string]string{"ID": "user_id:string"}, only: []string{"Seats"}}, `{"user_id":"7","metadata":{"Seats":"12"}}`, ""},
		"two ids":        {columnOptions{userID: "ID", renamed: map[string]string{"Account ID": "user_id"}}, "", `line 1: column "Account ID": only one column can have the users' ids (see --map and --user-id)`},
		"drop":           {columnOptions{userID: "ID", drop: []string{"Revenue", "Account ID", "Account"}}, `{"user_id":"7","metadata":{"Full name":"Ann","Seats":"12"}}`, ""},
		"no such column": {columnOptions{userID: "ID", drop: []string{"Revenues"}}, "", `line 1: first row: has no column "Revenues" (see --drop)`},
		"no such id":     {columnOptions{userID: "Id"}, "", "line 1: first row: has no column of the name that --user-id gives; are these the columns' names, and is the separator right (see --delimiter)?"},
		"two of a name":  {columnOptions{userID: "ID", renamed: map[string]string{"Full name": "Account"}}, "", `line 1: column "Account": appears twice: columns 2 and 3 both become "metadata.Account" (see --map and --drop)`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options()
			o.columns = test.columns
			bodies, bad, whole := readAll(t, "f", text, o)
			if got := strings.Join(bodies, "|"); got != test.event || whole != test.whole || bad != nil {
				t.Errorf("got %s, %q, %q", got, bad, whole)
			}
		})
	}
}

// Names that are not UTF-8 come of Excel as often as cells do, and can be neither sent nor found.
func TestNamesInAnotherEncoding(t *testing.T) {
	t.Parallel()
	const hint = " (the row is not UTF-8: if the file comes from Excel on Windows, give --encoding windows-1252)"
	for name, test := range map[string]struct {
		userID, text, bodies, whole string
	}{
		"a property":   {"", "user_id;Gr\xf6\xdfe\nann;x\n", "", `line 1: column "Gr\xf6\xdfe": the name is not UTF-8` + hint},
		"the ids":      {"Schlüssel", "Schl\xfcssel;plan\nann;x\n", "", "line 1: first row: has no column of the name that --user-id gives; are these the columns' names, and is the separator right (see --delimiter)?" + hint},
		"UTF-8":        {"Schlüssel", "Schlüssel;Größe\nann;x\n", `{"user_id":"ann","metadata":{"Größe":"x"}}`, ""},
		"another name": {"id", "Schlüssel;Größe\nann;x\n", "", "line 1: first row: has no column of the name that --user-id gives; are these the columns' names, and is the separator right (see --delimiter)?"},
	} {
		o := options()
		o.columns.userID = test.userID
		bodies, bad, whole := readAll(t, "f", test.text, o)
		if got := strings.Join(bodies, "|"); got != test.bodies || whole != test.whole || bad != nil {
			t.Errorf("%s: got %s, %q, %q", name, got, bad, whole)
		}
	}
}

// Excel leaves out the last cells of rows where they are empty in many of them.
func TestShortRows(t *testing.T) {
	t.Parallel()
	o := options()
	o.columns.shortRows = true
	const rows = "user_id,a,b\nann,x,y\nbob,x\ncy\n\n"
	const events = `{"user_id":"ann","metadata":{"a":"x","b":"y"}}|{"user_id":"bob","metadata":{"a":"x"}}|{"user_id":"cy"}`
	for name, test := range map[string]struct{ text, bodies, bad string }{
		"none wrong":           {"", "", ""},
		"too long":             {"di,x,y,z\ned,x\n", `|{"user_id":"ed","metadata":{"a":"x"}}`, "6: row: has 4 cells, the first row has 3"},
		"rows within a cell":   {"di,\"x\ned\nflo,y\",z\n", "", `6: row: a quote that opens in line 6 closes in line 8, and between them are lines that look like rows: close the quote, or give --multiline if cells have such lines`},
		"a quote that is open": {"di,\"x\ned\n", `|{"user_id":"ed"}`, "6: row: a quote that opens in line 6 does not close"},
	} {
		bodies, bad, whole := readAll(t, "f", rows+test.text, o)
		if got := strings.Join(bodies, "|"); got != events+test.bodies || strings.Join(bad, "|") != test.bad || whole != "" {
			t.Errorf("%s: %s, %q, %q", name, got, bad, whole)
		}
	}
}

// What is said of columns is not ignored where there are none.
func TestColumnsOfJSON(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"user_id":"ann"}`:   "is read as NDJSON and not as a table, so there are no columns for --user-id, --drop: publish it by itself, without that",
		`[{"user_id":"ann"}]`: "is read as JSON array and not as a table, so there are no columns for --user-id, --drop: publish it by itself, without that",
		"\n":                  "EOF",
		"id,email\n":          "EOF",
	} {
		o := options()
		o.columns.userID, o.columns.drop = "id", []string{"email"}
		s, err := openSource("f", strings.NewReader(text), &o)
		if err == nil {
			_, err = s.next()
		}
		if err.Error() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		decimal    byte
		text, want string
	}{
		{0, "1.50", "1.50"}, {0, " 12 ", "12"}, {0, "1,5", ""}, {0, "007", ""}, {0, "1e5", "1e5"}, {0, "NaN", ""},
		{0, "0", "0"}, {0, "00", ""}, {0, "-0", "-0"}, {0, "-", ""}, {0, " ", ""}, {0, "9007199254740993", "9007199254740993"}, {0, "1x", ""},
		{',', "1.234,50", "1234.50"}, {',', "-1.234.567", "-1234567"}, {',', "12,5", "12.5"}, {',', "1.5", ""}, {',', "1 234,5", "1234.5"}, {',', "1,2,3", ""},
		{'.', "1,234.50", "1234.50"}, {'.', "1,5", ""}, {'.', "0.5", "0.5"}, {'.', ".5", ""}, {'.', "1'000", "1000"},
		{',', ".234", ""}, {',', "1..234", ""}, {',', "1.234.", ""}, {',', "1.234 567", ""}, {',', "1234.567", ""}, {'.', "1\u202f000\u202f000.5", "1000000.5"}, {'.', "1000", "1000"}, {',', "-", ""},
	} {
		number := &valueType{kind: "number", decimal: test.decimal}
		got, err := number.append(nil, []byte(test.text))
		if string(got) != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%c %s: %s, %v", test.decimal, test.text, got, err)
		}
	}
}

// What a column of dates cannot be sure of is no date.
func TestDates(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ kind, text, want string }{
		{"date", "2026-01-31", `"2026-01-31"`}, {"date", "2026-01-31T10:00", `"2026-01-31T10:00:00Z"`}, {"date", "31/01/2026", ""},
		{"date", "2026-01-31T10:00:00.000+0000", `"2026-01-31T10:00:00Z"`}, {"date", "2026-01-31T10:00:00-0530", `"2026-01-31T10:00:00-05:30"`},
		{"date", "2026-01-31 10:00:00.5+01", `"2026-01-31T10:00:00.5+01:00"`}, {"date", "2026-01-31 10:00:00 +0100", `"2026-01-31T10:00:00+01:00"`}, {"date", "2026-01-31 10:00:00 UTC", `"2026-01-31T10:00:00Z"`},
		{"date(excel)", "46053", `"2026-01-31"`}, {"date(excel)", "46053.75", `"2026-01-31T18:00:00Z"`}, {"date(excel)", "100000", `"2173-10-14"`}, {"date(excel)", "61", `"1900-03-01"`}, {"date(excel)", "2958465", `"9999-12-31"`},
		{"date(excel)", "60", ""}, {"date(excel)", "0", ""}, {"date(excel)", "20260131", ""}, {"date(excel)", "NaN", ""}, {"date(excel)", "31.01.2026", ""},
		{"date(unix)", "1767225600", `"2026-01-01T00:00:00Z"`}, {"date(unix)", "1767225600.5", `"2026-01-01T00:00:00.5Z"`}, {"date(unix)", "1767225600000", ""}, {"date(unix)", "nan", ""}, {"date(unix)", "-1", ""}, {"date(unix)", "inf", ""},
		{"date(1/2/2006 3PM)", "1/31/2026 5PM", `"2026-01-31T17:00:00Z"`}, {"date(Jan 2, 2006)", "Jan 31, 2026", `"2026-01-31"`},
		{"date(2006-01-02 15:04 MST)", "2026-07-01 10:00 UTC", `"2026-07-01T10:00:00Z"`}, {"date(2006-01-02 15:04 MST)", "2026-07-01 10:00 GMT", `"2026-07-01T10:00:00Z"`}, {"date(2006-01-02 15:04 MST)", "2026-07-01 10:00 XKT", ""},
		{"date(2006-01-02 15:04 -0700 MST)", "2026-07-01 10:00 +0000 WET", `"2026-07-01T10:00:00Z"`},
	} {
		kind, err := parseType(test.kind, 0)
		if err != nil {
			t.Errorf("%s: %v", test.kind, err)
			continue
		}
		got, err := kind.append(nil, []byte(test.text))
		if string(got) != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%s %s: %s, %v", test.kind, test.text, got, err)
		}
	}
}

func TestSegment(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ call, event, err string }{
		{`{"type":"identify","userId":"ann","anonymousId":"x","traits":{"plan":"pro","n":1.50},"context":{"groupId":"g"}}`, `{"user_id":"ann","metadata":{"plan":"pro","n":1.50},"company":{"id":"g"}}`, ""},
		{`{"userId":"ann","traits":{}}`, `{"user_id":"ann","metadata":{}}`, ""},
		{`{"type":"identify","userId":"ann","traits":null}`, `{"user_id":"ann"}`, ""},
		{`{"type":"group","userId":"ann","groupId":"g","traits":{"name":"Acme"}}`, `{"user_id":"ann","company":{"id":"g","name":"Acme"}}`, ""},
		{`{"type":"group","userId":"ann","groupId":"g","traits":{ }}`, `{"user_id":"ann","company":{"id":"g"}}`, ""},
		{`{"type":"group","userId":"ann","groupId":"g","traits":null}`, `{"user_id":"ann","company":{"id":"g"}}`, ""},
		{`{"type":"group","userId":"ann","groupId":"g","traits":{"id":"g","name":"Acme"}}`, `{"user_id":"ann","company":{"id":"g","name":"Acme"}}`, ""},
		{`{"type":"group","userId":"ann","groupId":"g","traits":{"id":"h"}}`, "", "traits: have another id than groupId"},
		{`{"type":"group","userId":"ann","groupId":"g","traits":{"company_id":"h"}}`, "", "traits: have another id than groupId"},
		{`{"type":"group","userId":"ann","groupId":"g","traits":["x"]}`, "", "traits: must be an object"},
		{`{"type":"group","userId":"ann","traits":{"name":"Acme"}}`, "", "groupId: is missing"},
		{`{"type":"track","userId":"ann","event":"x"}`, "", "type: is a track of Segment, which tells nothing of the user's properties"},
		{`{"type":"identify","anonymousId":"x","traits":{}}`, "", "userId: is missing; a visitor without a name is no user"},
		{`{"user_id":"ann","userId":"ann"}`, "", ""},
		{`{"id":"ann"}`, "", ""},
		{`{"userId":"ann","metadata":{"plan":"pro"}}`, "", ""}, // what it tells would be lost
		{`{"type":"identify","userId":"ann","traits":{},"metadata":{"plan":"pro"}}`, "", ""},
		{`{"userId":"ann","traits":{},"company":{"id":"g"}}`, "", ""},
		{`{"userId":"ann","plan":"pro"}`, "", ""},
		{`{"type":"identify","userId":"ann"}`, `{"user_id":"ann"}`, ""},
		{`{"userId":"ann","traits":{}}{"userId":"bob","traits":{}}`, "", ""}, // and so would be the second
		{`[]`, "", ""},
	} {
		got, err := fromSegment([]byte(test.call))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if string(got) != test.event || text != test.err {
			t.Errorf("%s: %s, %s", test.call, got, text)
		}
	}
}

func TestParseRenamed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                    "",
		"a=b":                                 "a=b",
		"full name = name, Account=company.x": "Account=company.x,full name=name",
		"d=d:date(Jan 2, 2006),e=f":           "d=d:date(Jan 2, 2006),e=f",
		"a=b=c":                               "a=b=c",
		"a=b,a=c":                             "must name each column once",
		"a":                                   "must be COLUMN=NAME, such as 'full name=name,Account=company.name'",
		"a=":                                  "must have a name on both sides of the equals sign",
	} {
		renamed, err := parseRenamed(text, nil)
		got := formatRenamed(renamed)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// FuzzSource checks that any file is read to its end, or refused in one line, whatever it is taken for.
func FuzzSource(f *testing.F) {
	for _, text := range []string{"", "[", "{", "\x1e{}", "sep=", "sep=;\r", "\xff\xfeu\x00", "\x1f\x8b\x08\x00", "\x28\xb5\x2f\xfd\x00", "BZh91AY&SY", "user_id\r\"", "{}\r{}", "\n\n", byteOrderMark} {
		for i := range 4 {
			f.Add(text, i)
		}
	}
	f.Fuzz(func(t *testing.T, text string, how int) {
		o := options()
		o.format = []string{"auto", "ndjson", "json", "csv"}[uint(how)%4]
		o.encoding = []string{"auto", "utf-8", "utf-16le", "utf-16be", "windows-1252"}[uint(how)/4%5]
		o.multiline = how%3 == 0
		_, bad, whole := readAll(t, "f", text, o)
		for _, message := range append(bad, whole) {
			if strings.ContainsAny(message, "\r\n\x1b") {
				t.Fatalf("%q", message)
			}
		}
	})
}
