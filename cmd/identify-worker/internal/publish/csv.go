package publish

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

// csvReader makes an event from each row. The first row names the columns.
type csvReader struct {
	rows    *csv.Reader
	bound   *boundedReader
	null    string
	columns []column
	line    int // where the row that was read last begins
	ended   bool
}

func newCSV(r io.Reader, null string) *csvReader {
	text := bufio.NewReader(r)
	if begin, _ := text.Peek(len(byteOrderMark)); string(begin) == byteOrderMark {
		_, _ = text.Discard(len(byteOrderMark))
	}
	bound := &boundedReader{reader: text}
	rows := csv.NewReader(bound)
	rows.FieldsPerRecord = -1 // checked in next, to go on after a bad row
	return &csvReader{rows: rows, bound: bound, null: null}
}

// next returns the next event. If the first row is wrong there are none: that is reported once,
// and the file ends there.
func (c *csvReader) next() (line int, body []byte, bad error, err error) {
	if c.ended {
		return 0, nil, nil, io.EOF
	}
	cells, bad, err := c.row()
	if err == nil && bad == nil && c.columns == nil {
		if c.columns, bad = parseColumns(cells); bad == nil {
			cells, bad, err = c.row()
		}
	}
	c.ended = c.ended || c.columns == nil
	switch {
	case bad != nil || err != nil:
		return c.line, nil, bad, err
	case len(cells) != len(c.columns):
		return c.line, nil, fmt.Errorf("row: has %s, the first row has %d", render.Counted(len(cells), "cell"), len(c.columns)), nil
	}
	body, bad = c.event(cells)
	return c.line, body, bad, nil
}

// row reads one row. Errors never contain its text.
func (c *csvReader) row() (cells []string, bad, err error) {
	c.bound.left = maxLineBytes
	cells, err = c.rows.Read()
	if parse, ok := errors.AsType[*csv.ParseError](err); ok {
		c.line = parse.StartLine
		return nil, fmt.Errorf("row: %w in line %d, column %d", parse.Err, parse.Line, parse.Column), nil
	}
	if errors.Is(err, errLongRow) {
		c.line++
		c.ended = true // who knows where the next row begins
		return nil, err, nil
	}
	if err != nil {
		return nil, nil, err
	}
	c.line, _ = c.rows.FieldPos(0)
	return cells, nil, nil
}

// event writes the JSON of a row. Empty cells are left out.
func (c *csvReader) event(cells []string) ([]byte, error) {
	sections := map[string][]byte{}
	for i, column := range c.columns {
		if cells[i] == "" {
			continue
		}
		member, err := column.append(sections[column.section], cells[i], c.null)
		if err != nil {
			return nil, err
		}
		sections[column.section] = member
	}
	body := append([]byte("{"), sections[""]...)
	for _, section := range []string{"metadata", "company"} {
		if members := sections[section]; members != nil {
			body = fmt.Appendf(separate(body), `"%s":{%s}`, section, members)
		}
	}
	return append(body, '}'), nil
}

// separate adds the comma before a member, unless it is the first.
func separate(members []byte) []byte {
	if n := len(members); n == 0 || members[n-1] == '{' {
		return members
	}
	return append(members, ',')
}

// column is where a cell's value goes.
type column struct {
	name    string // as in the first row
	section string // metadata, company, or empty for user_id
	member  string
	kind    string // number, bool, or empty for string
}

// parseColumns reads the first row.
func parseColumns(names []string) ([]column, error) {
	var columns []column
	for _, name := range names {
		c, err := parseColumn(strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		same := func(d column) bool { return d.section == c.section && d.member == c.member }
		if slices.ContainsFunc(columns, same) {
			return nil, fmt.Errorf("column %s: appears twice", quoteName(name))
		}
		columns = append(columns, c)
	}
	if !slices.ContainsFunc(columns, func(c column) bool { return c.section == "" }) {
		return nil, errors.New("first row: has no column user_id (are the separators commas?)")
	}
	return columns, nil
}

func parseColumn(name string) (column, error) {
	c := column{name: name, member: name}
	for _, kind := range []string{"number", "bool"} {
		if rest, found := strings.CutSuffix(name, ":"+kind); found {
			c.member, c.kind = rest, kind
		}
	}
	if c.member == "user_id" && c.kind == "" {
		return c, nil
	}
	section, member, _ := strings.Cut(c.member, ".")
	if section != "metadata" && section != "company" || member == "" {
		return c, fmt.Errorf("column %s: must be user_id, metadata.NAME or company.NAME", quoteName(name))
	}
	c.section, c.member = section, member
	return c, nil
}

// quoteName makes a column's name safe for a message.
func quoteName(name string) string {
	if runes := []rune(name); len(runes) > 64 {
		name = string(runes[:64])
	}
	return strconv.Quote(name)
}

// append appends the member for a cell to the members before it.
func (c column) append(members []byte, cell, null string) ([]byte, error) {
	members, err := jsontext.AppendQuote(separate(members), c.member)
	if err != nil {
		return nil, fmt.Errorf("column %s: the name is not UTF-8", quoteName(c.name))
	}
	members = append(members, ':')
	switch {
	case null != "" && cell == null:
		return append(members, "null"...), nil
	case c.kind == "number":
		number := jsontext.Value(strings.TrimSpace(cell))
		if number.Kind() != '0' || !number.IsValid() {
			return nil, fmt.Errorf("column %s: is not a number such as 12 or 1.5", quoteName(c.name))
		}
		return append(members, number...), nil
	case c.kind == "bool":
		on, err := strconv.ParseBool(strings.ToLower(strings.TrimSpace(cell)))
		if err != nil {
			return nil, fmt.Errorf("column %s: is not true or false", quoteName(c.name))
		}
		return strconv.AppendBool(members, on), nil
	}
	members, err = jsontext.AppendQuote(members, cell)
	if err != nil {
		return nil, fmt.Errorf("column %s: is not UTF-8", quoteName(c.name))
	}
	return members, nil
}

// boundedReader fails with errLongRow if a row does not end in time. Otherwise an open quote would
// read the whole file into memory.
type boundedReader struct {
	reader io.Reader
	left   int
}

var errLongRow = fmt.Errorf("row: is longer than %s; the rest of the file is skipped", flags.FormatSize(maxLineBytes))

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errLongRow
	}
	n, err := b.reader.Read(p)
	b.left -= n
	return n, err
}
