package publish

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// dialect is how a correct writer of tables writes.
type dialect struct {
	Delimiter, EOL string
	QuoteAll       bool
	NoLastEOL      bool
	Mark           bool // at the beginning
}

// write returns the text, and where the bytes are that make the table's structure.
func (d dialect) write(rows [][]string) (text string, structure []int) {
	var b strings.Builder
	structural := func(text string) {
		for i := range len(text) {
			structure = append(structure, b.Len()+i)
		}
		b.WriteString(text)
	}
	if d.Mark {
		b.WriteString(byteOrderMark)
	}
	for i, row := range rows {
		for j, value := range row {
			if j > 0 {
				structural(d.Delimiter)
			}
			if !d.QuoteAll && (value != "" || len(row) > 1) && !strings.ContainsAny(value, d.Delimiter+"\"\r\n") {
				b.WriteString(value)
				continue
			}
			structural(`"`)
			for k, part := range strings.Split(value, `"`) {
				if k > 0 {
					structural(`""`)
				}
				b.WriteString(part)
			}
			structural(`"`)
		}
		if i+1 < len(rows) || !d.NoLastEOL {
			structural(d.EOL)
		}
	}
	return b.String(), structure
}

func drawDialect(t *rapid.T) dialect {
	return dialect{
		Delimiter: rapid.SampledFrom([]string{",", ";", "\t", "|"}).Draw(t, "delimiter"),
		EOL:       rapid.SampledFrom([]string{"\n", "\r\n", "\r"}).Draw(t, "eol"),
		QuoteAll:  rapid.Bool().Draw(t, "quote all"),
		NoLastEOL: rapid.Bool().Draw(t, "no last eol"),
		Mark:      rapid.Bool().Draw(t, "mark"),
	}
}

// drawTable draws rows of values; the first column is the users'.
func drawTable(t *rapid.T, value *rapid.Generator[string], least int) [][]string {
	width := rapid.IntRange(least, 5).Draw(t, "columns")
	header := []string{"user_id"}
	for i := 1; i < width; i++ {
		header = append(header, fmt.Sprintf("c%d", i))
	}
	rows := [][]string{header}
	for i := range rapid.IntRange(0, 6).Draw(t, "rows") {
		row := []string{fmt.Sprintf("u%d", i) + rapid.SampledFrom([]string{"", " x", `"`, "\n"}).Draw(t, "user")}
		for range width - 1 {
			row = append(row, value.Draw(t, "value"))
		}
		rows = append(rows, row)
	}
	return rows
}

func eventOf(t *rapid.T, header, row []string) string {
	event := map[string]any{"user_id": row[0]}
	metadata := map[string]string{}
	for i, value := range row[1:] {
		if value != "" {
			metadata[header[i+1]] = value
		}
	}
	if len(metadata) > 0 {
		event["metadata"] = metadata
	}
	return canonical(t, event)
}

func canonical(t *rapid.T, value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func eventsIn(t *rapid.T, bodies []string) (events []string) {
	for _, body := range bodies {
		var event any
		if err := json.Unmarshal([]byte(body), &event); err != nil {
			t.Fatal(err)
		}
		events = append(events, canonical(t, event))
	}
	return events
}

// Any table comes back as it was, whatever is in its cells and however it was written.
func TestTableComesBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := drawDialect(rt)
		value := rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.SampledFrom([]rune("a ,;|\t\"\r\nü{'=\ufeff")), 0, 12, -1))
		rows := drawTable(rt, value, 1)
		o := options()
		o.format, o.multiline = "csv", true
		text, _ := d.write(rows)
		bodies, bad, whole := readAll(t, "f", text, o)
		if bad != nil || whole != "" {
			rt.Fatalf("%q\nbad: %q, %q", text, bad, whole)
		}
		var want []string
		for _, row := range rows[1:] {
			want = append(want, eventOf(rt, rows[0], row))
		}
		if got := eventsIn(rt, bodies); !slices.Equal(got, want) {
			rt.Fatalf("%q\ngot  %q\nwant %q", text, got, want)
		}
	})
}

// breakByte breaks a byte below the first row. It returns nil for what nobody can see.
func breakByte(rt *rapid.T, d dialect, whole string, structure []int) (broken []byte, how string) {
	how = rapid.SampledFrom([]string{"insert a quote", "a quote instead", "insert", "instead", "delete", "replace"}).Draw(rt, "how")
	at := rapid.SampledFrom(structure).Draw(rt, "at")
	if how != "delete" && how != "replace" {
		at = rapid.IntRange(0, len(whole)-1).Draw(rt, "anywhere")
	}
	if header := strings.Index(whole, d.EOL); header < 0 || at < header+len(d.EOL) {
		return nil, how
	}
	isQuoted := strings.Count(whole[:at], `"`)%2 == 1
	isEnd := at+1 == len(whole) || strings.HasPrefix(whole[at+1:], d.EOL)
	mark := rapid.SampledFrom([]byte{d.Delimiter[0], d.EOL[len(d.EOL)-1]}).Draw(rt, "mark")
	broken = []byte(whole)
	switch {
	case how == "insert a quote":
		return slices.Insert(broken, at, '"'), how
	case how == "a quote instead":
		broken[at] = '"'
	case how == "delete":
		return slices.Delete(broken, at, at+1), how
	case how == "replace" && (at >= len(whole)-len(d.EOL) || whole[at] == '\r' && d.EOL == "\r\n"):
		return nil, how // the last cell of a row has one letter more
	case how == "replace":
		broken[at] = 'x'
	case isQuoted:
		return nil, how // the value is another
	case how == "insert":
		return slices.Insert(broken, at, mark), how
	case mark != d.Delimiter[0] && (isEnd || strings.HasSuffix(whole[:at], d.EOL)):
		return nil, how // a row has one letter less at its end, and an empty line follows
	case whole[at] == '"':
		return nil, how // what follows has a wrong quote, and cannot cost each row before one
	default:
		broken[at] = mark
	}
	return broken, how
}

// Whichever byte of a table is broken, no row comes out that was not in it.
func TestBrokenTable(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := drawDialect(rt)
		// A cell of several lines has none that looks like a row: that is what --multiline is for.
		value := rapid.OneOf(
			rapid.StringOfN(rapid.SampledFrom([]rune("ab\"\n")), 0, 8, -1),
			rapid.StringOfN(rapid.SampledFrom([]rune("ab\""+d.Delimiter)), 0, 8, -1))
		rows := drawTable(rt, value, 2)
		whole, structure := d.write(rows)
		broken, how := breakByte(rt, d, whole, structure)
		if broken == nil {
			return
		}
		o := options()
		o.format, o.delimiter = "csv", d.Delimiter[0]
		bodies, _, _ := readAll(t, "f", string(broken), o)
		var events []string
		for _, row := range rows[1:] {
			events = append(events, eventOf(rt, rows[0], row))
		}
		for _, got := range eventsIn(rt, bodies) {
			if !slices.Contains(events, got) && strings.Contains(got, `"user_id":`) { // without a user it is a bad line
				rt.Fatalf("%s: %q\n%q\nfalse %s", how, whole, broken, got)
			}
		}
	})
}
