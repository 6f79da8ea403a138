package publish

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

// table reads a table whose first row has the names of its columns.
type table struct {
	rows    *scanner
	options *columnOptions
	header  []string
	*mapping
	anyUTF8 bool // takes cells that are not UTF-8 for mistakes, not for another encoding
	seen    bool // a cell that is UTF-8 and not ASCII
	unended bool // the last row does not end with a line

	slab []byte // where bodies are written
	// held are rows that are not yet believed. A row may turn out to be only the beginning of one, and
	// one of several lines to be made of parts of two: that shows when a later quote is wrong. They are
	// believed when a row of one line follows. What is bad between them waits with them.
	held  []heldRow
	size  int      // bytes of all that is held
	stray int      // where the last row with a single cell ends
	queue []record // what next returns, and how much of it was returned
	given int
	ended error
}

type heldRow struct {
	record
	lines int
}

// maxHeld and maxHeldBytes bound the rows that wait.
const (
	maxHeld      = 1000
	maxHeldBytes = 8 << 20
)

func newTable(rows *scanner, o *columnOptions) *table { return &table{rows: rows, options: o} }

// start reads the first row.
func (t *table) start() error {
	first, err := t.rows.next()
	switch {
	case errors.Is(err, io.EOF):
		return err
	case err != nil:
		return err
	case first.bad != nil:
		return fmt.Errorf("line %d: the first row cannot be read: %w", first.line, first.bad)
	}
	t.header = make([]string, 0, len(first.cells))
	for i, c := range first.cells {
		if bytes.ContainsAny(c.text, "\r\n") && !t.rows.multiline {
			return fmt.Errorf("line %d: the name of column %d has more than one line: a quote is probably missing or too many; give --multiline if the name is right", first.line, i+1)
		}
		t.header = append(t.header, strings.TrimSpace(string(c.value())))
	}
	if len(t.header[0]) == 0 && first.isBlank() {
		t.header = nil
		return t.start() // above the table an export may have empty rows
	}
	if t.mapping, err = newMapping(t.header, t.options); err != nil {
		return fmt.Errorf("line %d: %w%s", first.line, err, encodingHint(t.header))
	}
	t.rows.columns = len(t.header)
	return nil
}

// encodingHint says that names may be wrong because they are not UTF-8. It is empty if they are.
func encodingHint(names []string) string {
	if !slices.ContainsFunc(names, func(name string) bool { return !utf8.ValidString(name) }) {
		return ""
	}
	return " (the row is not UTF-8: if the file comes from Excel on Windows, give --encoding windows-1252)"
}

// isBlank reports whether all cells are empty.
func (r *row) isBlank() bool {
	return !slices.ContainsFunc(r.cells, func(c cell) bool { return len(c.text) > 0 })
}

func (t *table) next() (record, error) {
	if t.header == nil && t.ended == nil {
		t.ended = t.start()
	}
	for t.given == len(t.queue) {
		if t.ended != nil {
			return record{}, t.ended
		}
		t.queue, t.given = t.queue[:0], 0
		if t.ended = t.read(); t.ended != nil {
			t.release()
		}
	}
	t.given++
	return t.queue[t.given-1], nil
}

// release puts what was held into the queue.
func (t *table) release() {
	for _, r := range t.held {
		t.queue = append(t.queue, r.record)
	}
	t.held, t.size = t.held[:0], 0
}

func (t *table) hold(r record, lines int) {
	t.held = append(t.held, heldRow{r, lines})
	t.size += len(r.body)
	if len(t.held) > maxHeld || t.size > maxHeldBytes {
		t.release()
	}
}

// doubt is called for a row with a wrong quote: the rows of several lines before it may be wrong too,
// and so may be the last row, if this one is none by itself but goes on where that one ends.
func (t *table) doubt(row *row) {
	last := row.orphan
	for i := range slices.Backward(t.held) {
		r := &t.held[i]
		if r.err == nil && (last || r.lines > 1) {
			r.body = nil
			r.err = doubtful(row.line)
			last = false
		}
	}
}

// isNothing reports whether a row is passed over. Quotes around nothing are something.
func (t *table) isNothing(row *row) bool {
	return row.bad == nil && row.isBlank() && !(t.isStray(row) && row.cells[0].quoted)
}

// isStray reports whether a row has a single cell, of several.
func (t *table) isStray(row *row) bool {
	return row.bad == nil && len(row.cells) == 1 && len(t.header) > 1
}

// split is called for a row with a single cell, as a line feed leaves it that stands in a cell without
// quotes: the cell may be the end of the row before it, or the beginning of the next.
func (t *table) split(row *row) {
	t.stray = row.last
	if len(t.held) == 0 {
		return
	}
	if before := &t.held[len(t.held)-1]; before.err == nil && before.line+before.lines == row.line {
		before.body, before.err = nil, mayGoOn(row.line)
	}
}

func mayGoOn(line int) error {
	return fmt.Errorf("row: may not be whole, as line %d has a single cell: a cell with a line feed needs quotes", line)
}

// read reads one row. It is called when the queue is empty.
func (t *table) read() error {
	row, err := t.rows.next()
	if err != nil {
		t.unended = t.rows.unended
		return err
	}
	r := record{position: position{line: row.line}}
	if len(row.cells) > 0 && !row.cells[0].quoted { // files that were put together
		row.cells[0].text = bytes.TrimPrefix(row.cells[0].text, []byte(byteOrderMark))
	}
	if t.isNothing(row) {
		return nil
	}
	if row.bad == nil && t.options.shortRows {
		row.cells = append(row.cells, make([]cell, max(0, len(t.header)-len(row.cells)))...)
	}
	lines := row.last - row.line + 1
	if r.err = t.check(row); r.err != nil {
		if t.isStray(row) {
			t.split(row)
		}
		if row.bad != nil || lines > 1 {
			t.doubt(row)
		}
		t.hold(r, lines)
		return nil
	}
	if lines == 1 {
		t.release()
	}
	if r.body, r.err = t.event(row.cells); t.isForeign(r.err) {
		return fmt.Errorf("line %d: %w: if the file comes from Excel on Windows, give --encoding windows-1252; with --encoding utf-8 such rows are bad lines", row.line, r.err)
	}
	t.hold(r, lines)
	return nil
}

// check returns what is wrong with a row's shape.
func (t *table) check(row *row) error {
	switch {
	case row.bad != nil:
		return row.bad
	case len(row.cells) != len(t.header):
		hint := ""
		if len(row.cells) < len(t.header) {
			hint = " (see --short-rows)"
		}
		return fmt.Errorf("row: has %s, the first row has %d%s", render.Counted(len(row.cells), "cell"), len(t.header), hint)
	case t.stray > 0 && t.stray == row.line-1:
		return mayGoOn(t.stray)
	}
	for i, c := range row.cells {
		if c.escaped || string(bytes.TrimSpace(c.text)) != t.header[i] {
			return nil
		}
	}
	return errors.New("row: repeats the columns' names")
}

// isForeign reports whether the file seems to be in another encoding: the first cell that is not
// ASCII is not UTF-8.
func (t *table) isForeign(err error) bool {
	return errors.Is(err, errNotUTF8) && !t.anyUTF8 && !t.seen
}

// event writes the event of a row. Bodies share a slice as long as it has room.
func (t *table) event(cells []cell) ([]byte, error) {
	if cap(t.slab)-len(t.slab) < 4<<10 {
		t.slab = make([]byte, 0, 64<<10)
	}
	start := len(t.slab)
	slab, err := t.mapping.event(t.slab, cells)
	if err != nil {
		return nil, err
	}
	t.slab = slab
	body := slab[start:len(slab):len(slab)]
	t.seen = t.seen || bytes.IndexFunc(body, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0
	return body, nil
}
