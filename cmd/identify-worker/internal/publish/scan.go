package publish

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// scanner splits a table into rows and cells. It is strict, as encoding/csv is, and knows more: where
// a quote opened, so that one that does not close costs as little as it can.
//
// It takes a line that has as many cells as the table has columns for a row, wherever it stands. So a
// quoted cell that holds such a line is refused, and after a quote that does not close the next line
// is a row again. With short, fewer cells are a row as well. With multiline a cell may hold anything, and
// a quote that does not close costs all lines up to where that is certain.
type scanner struct {
	reader    io.Reader
	delimiter byte
	eol       byte // '\n', with or without '\r' before it, or '\r'
	multiline bool
	columns   int  // of the table; 0 until the first row is known
	short     bool // rows may have fewer

	buf        []byte
	start, end int // what has been read and not yet scanned
	readErr    error
	line       int  // of buf[start]
	broken     int  // the line with the wrong quote, while what follows is a row only perhaps
	unended    bool // the last row does not end with a line, as if the file were cut off there
	lexed      row  // reused
}

// cell is the text between two separators, as a part of the scanner's buffer.
type cell struct {
	text    []byte // without the quotes around it
	escaped bool   // it has quotes, which are doubled
	quoted  bool
}

// append appends the cell's value.
func (c cell) append(to []byte) []byte {
	if !c.escaped {
		return append(to, c.text...)
	}
	text := c.text
	for {
		i := bytes.IndexByte(text, '"')
		if i < 0 {
			return append(to, text...)
		}
		to = append(to, text[:i+1]...)
		text = text[i+2:]
	}
}

func (c cell) value() []byte {
	if !c.escaped {
		return c.text
	}
	return c.append(nil)
}

// row is one row, or what is wrong with it.
type row struct {
	line  int // where it begins
	last  int // and ends
	cells []cell
	bad   error
	// orphan says that the first line is no row by itself. If it has a wrong quote, the row before may
	// be its beginning.
	orphan bool
}

// doubtful is what is wrong with a row that may be a part of another.
func doubtful(line int) error {
	return fmt.Errorf("row: may not be what it seems, as a quote is wrong in line %d", line)
}

// errIncomplete says that a row goes on after what has been read.
var errIncomplete = errors.New("incomplete")

func newScanner(r io.Reader, delimiter, eol byte, multiline bool) *scanner {
	return &scanner{reader: r, delimiter: delimiter, eol: eol, multiline: multiline, buf: make([]byte, 128<<10), line: 1}
}

// next returns the next row, whose cells are valid until the following call. It returns io.EOF at the
// end, and an error if the table cannot be read on. It passes over empty lines.
func (s *scanner) next() (*row, error) {
	for {
		row, used, err := s.scan(s.buf[s.start:s.end])
		switch {
		case err == nil:
			s.start += used
			s.line = row.last + 1
			s.unended = s.readErr != nil && s.start == s.end && s.buf[s.start-1] != s.eol
			if row.bad == nil && row.isEmptyLine() {
				continue
			}
			return row, nil
		case !errors.Is(err, errIncomplete):
			return nil, err
		}
		if s.end-s.start > maxLineBytes {
			return s.long()
		}
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
}

func (r *row) isEmptyLine() bool {
	return len(r.cells) == 1 && len(r.cells[0].text) == 0 && !r.cells[0].quoted
}

// long is the row at the beginning of the buffer, which does not end in time.
func (s *scanner) long() (*row, error) {
	s.lexed = row{line: s.line, last: s.line, cells: s.lexed.cells[:0]}
	data := s.buf[s.start:s.end]
	first := bytes.IndexByte(data, s.eol)
	switch {
	case s.multiline || s.columns == 0 || first >= 0 && !s.isRow(s.count(data[:first])):
		return nil, fmt.Errorf("line %d: row: is longer than %s; where the next row begins cannot be known", s.line, flags.FormatSize(maxLineBytes))
	case first >= 0:
		s.lexed.bad = fmt.Errorf("row: a quote that opens in line %d does not close within %s", s.line, flags.FormatSize(maxLineBytes))
		s.start += first + 1
		s.broken = s.line
	default:
		s.lexed.bad = fmt.Errorf("row: is longer than %s", flags.FormatSize(maxLineBytes))
		if err := s.skip(); err != nil {
			return nil, err
		}
	}
	s.line++
	return &s.lexed, nil
}

// skip passes over the rest of a line.
func (s *scanner) skip() error {
	for {
		if i := bytes.IndexByte(s.buf[s.start:s.end], s.eol); i >= 0 {
			s.start += i + 1
			return nil
		}
		s.start = s.end
		if s.readErr != nil {
			return nil
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
}

// fill reads more. What has not been scanned moves to the beginning of the buffer.
func (s *scanner) fill() error {
	copy(s.buf, s.buf[s.start:s.end])
	s.end -= s.start
	s.start = 0
	if s.end == len(s.buf) {
		s.buf = append(s.buf, make([]byte, len(s.buf))...)
	}
	n, err := s.reader.Read(s.buf[s.end:])
	s.end += n
	switch {
	case errors.Is(err, io.EOF):
		s.readErr = io.EOF
	case err != nil:
		return err
	}
	return nil
}

// scan finds the row at the beginning of data, and how long it is.
func (s *scanner) scan(data []byte) (*row, int, error) {
	if len(data) == 0 && s.readErr != nil {
		return nil, 0, s.readErr
	}
	l := lexer{data: data, delimiter: s.delimiter, eol: s.eol, ended: s.readErr != nil, line: s.line, cells: s.lexed.cells[:0]}
	err := l.row()
	s.lexed = row{line: s.line, last: l.line, cells: l.cells}
	r := &s.lexed
	if errors.Is(err, errIncomplete) || err != nil && !l.hasLine() {
		return nil, 0, errIncomplete
	}
	if err != nil {
		return r, s.salvage(r, &l, err), nil
	}
	s.judge(r, &l)
	return r, l.at, nil
}

// judge looks whether a row that could be read is what it seems.
func (s *scanner) judge(r *row, l *lexer) {
	if s.broken > 0 && s.isRow(len(r.cells)) {
		if r.cells[0].escaped { // its first quotes may stand within a cell that began before
			r.bad = doubtful(s.broken)
		}
		s.broken = 0
	}
	if r.last == r.line || r.bad != nil {
		return
	}
	r.orphan = s.multiline || !s.isRow(s.firstLine(l))
	if s.swallowed(l) {
		r.bad = fmt.Errorf("row: a quote that opens in line %d closes in line %d, and between them are lines that look like rows: close the quote, or give --multiline if cells have such lines", l.opened, r.last)
	}
}

// salvage decides what a row with a wrong quote costs, and returns its length.
func (s *scanner) salvage(r *row, l *lexer, bad error) int {
	r.bad = bad
	r.orphan = s.multiline || !s.isRow(s.firstLine(l))
	if l.line > s.line && !r.orphan { // the first line may be a row by itself, with a quote too many: then the next may be one too
		s.broken = s.line
		r.last = s.line
		return len(l.lineAt(0))
	}
	return l.skipLine()
}

// swallowed reports whether a quoted cell holds what looks like a row.
func (s *scanner) swallowed(l *lexer) bool {
	if s.multiline || s.columns == 0 {
		return false
	}
	for _, c := range l.cells {
		text := c.text
		for c.quoted {
			i := bytes.IndexByte(text, s.eol)
			if i < 0 {
				break
			}
			text = text[i+1:]
			inner := text
			if i := bytes.IndexByte(text, s.eol); i >= 0 {
				inner = text[:i]
			}
			if s.isRow(s.count(inner)) {
				return true
			}
		}
	}
	// Two neighbours whose quotes are wrong look like this.
	last := bytes.LastIndexByte(bytes.TrimSuffix(l.data[:l.at], []byte{s.eol}), s.eol)
	return s.isRow(s.firstLine(l)) && s.isRow(s.count(l.data[last+1:l.at]))
}

// firstLine is how many cells the first line has if the quote that leads out of it, or is wrong, means
// nothing.
func (s *scanner) firstLine(l *lexer) int {
	for i, c := range l.cells {
		if c.quoted && bytes.IndexByte(c.text, s.eol) >= 0 {
			return i + s.count(l.lineAt(cap(l.data)-cap(c.text)-1))
		}
	}
	return len(l.cells) + s.count(l.lineAt(l.begin))
}

// isRow reports whether a row may have so many cells.
func (s *scanner) isRow(cells int) bool {
	return cells == s.columns || s.short && cells < s.columns
}

// count is how many cells a line has if quotes mean nothing.
func (s *scanner) count(line []byte) int {
	return bytes.Count(line, []byte{s.delimiter}) + 1
}

// lexer reads one row.
type lexer struct {
	data           []byte
	delimiter, eol byte
	ended          bool // data is all there is
	at, begin      int  // of what is read next, and of the current cell
	line           int  // of what is read next
	opened         int  // line of the last quote that opened; 0 if there is none
	cells          []cell
}

// row reads cells up to the end of the row. Its errors say where the quotes are, and nothing else.
func (l *lexer) row() error {
	for {
		l.begin = l.at
		if l.at < len(l.data) && l.data[l.at] == '"' {
			if err := l.quoted(); err != nil {
				return err
			}
		} else if err := l.plain(); err != nil {
			return err
		}
		if l.at == len(l.data) { // the file ends without the end of a line
			return nil
		}
		switch c := l.data[l.at]; {
		case c == l.delimiter:
			l.at++
			if l.at == len(l.data) && !l.ended {
				return errIncomplete
			}
		case c == '\r' && l.eol == '\n':
			l.at += 2
			return nil
		default:
			l.at++
			return nil
		}
	}
}

// plain reads a cell without quotes.
func (l *lexer) plain() error {
	start := l.at
	for l.at < len(l.data) {
		switch c := l.data[l.at]; {
		case c == l.delimiter || c == l.eol:
			l.cells = append(l.cells, cell{text: l.data[start:l.at]})
			return nil
		case c == '"':
			return fmt.Errorf("row: has a quote within a cell that does not begin with one, in line %d, column %d; write %s", l.line, len(l.cells)+1, howToQuote)
		case c == '\r' && l.eol == '\n':
			ends, err := l.endsCell()
			if err == nil && !ends {
				err = fmt.Errorf("row: has a carriage return within a cell that is not quoted, in line %d, column %d", l.line, len(l.cells)+1)
			}
			if err == nil {
				l.cells = append(l.cells, cell{text: l.data[start:l.at]})
			}
			return err
		case c == '\n': // in a file whose lines end with '\r'
			return fmt.Errorf("row: has a line feed within a cell that is not quoted, in line %d, column %d", l.line, len(l.cells)+1)
		}
		l.at++
	}
	if !l.ended {
		return errIncomplete
	}
	l.cells = append(l.cells, cell{text: l.data[start:l.at]})
	return nil
}

const howToQuote = `"15"" wide" for 15" wide`

// quoted reads a cell that begins with a quote.
func (l *lexer) quoted() error {
	opened := l.line
	l.opened = opened
	c := cell{quoted: true}
	l.at++
	start := l.at
	for {
		i := bytes.IndexByte(l.data[l.at:], '"')
		if i < 0 || l.at+i+1 == len(l.data) && !l.ended {
			return l.open(opened, i)
		}
		l.line += bytes.Count(l.data[l.at:l.at+i], []byte{l.eol})
		l.at += i + 1
		if l.at == len(l.data) || l.data[l.at] != '"' {
			break
		}
		c.escaped = true
		l.at++
	}
	c.text = l.data[start : l.at-1]
	ends, err := l.endsCell()
	if err == nil && !ends {
		err = fmt.Errorf("row: a quote that opens in line %d is followed in line %d by one that does not end the cell; write %s", opened, l.line, howToQuote)
	}
	if err != nil {
		return err
	}
	l.cells = append(l.cells, c)
	return nil
}

// endsCell reports whether a cell may end here.
func (l *lexer) endsCell() (bool, error) {
	switch {
	case l.at == len(l.data) || l.data[l.at] == l.delimiter || l.data[l.at] == l.eol:
		return true, nil
	case l.data[l.at] != '\r' || l.eol != '\n':
		return false, nil
	case l.at+1 == len(l.data) && !l.ended:
		return false, errIncomplete
	}
	return l.at+1 < len(l.data) && l.data[l.at+1] == '\n', nil
}

// open is the error for a quote that does not close in what has been read.
func (l *lexer) open(opened, next int) error {
	if !l.ended || next >= 0 {
		return errIncomplete
	}
	l.line += bytes.Count(bytes.TrimSuffix(l.data[l.at:], []byte{l.eol}), []byte{l.eol})
	l.at = len(l.data)
	return fmt.Errorf("row: a quote that opens in line %d does not close", opened)
}

// lineAt is the line of the file that begins at a byte of the data, with its end.
func (l *lexer) lineAt(at int) []byte {
	if i := bytes.IndexByte(l.data[at:], l.eol); i >= 0 {
		return l.data[at : at+i+1]
	}
	return l.data[at:]
}

// hasLine reports whether the current line is there to its end.
func (l *lexer) hasLine() bool {
	return l.ended || bytes.IndexByte(l.data[l.at:], l.eol) >= 0
}

// skipLine is where the line after the current one begins.
func (l *lexer) skipLine() int {
	return l.at + len(l.lineAt(l.at))
}
