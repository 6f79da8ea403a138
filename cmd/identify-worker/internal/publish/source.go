package publish

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/zstd"
)

// headBytes is how much of a file is looked at before a reader is chosen.
const headBytes = 64 << 10

// byteOrderMark begins many files that were written on Windows.
const byteOrderMark = "\xef\xbb\xbf"

// sourceOptions are what the user says of a file.
type sourceOptions struct {
	format    string // auto, ndjson, json or csv
	encoding  string // auto, utf-8, utf-16le, utf-16be or windows-1252
	delimiter byte   // 0: by the first row
	multiline bool
	columns   columnOptions
}

// source is what a file is, and its reader.
type source struct {
	recordReader
	what  string // for a person
	table *table // nil if it is none
}

// free drops the buffers and keeps what the summary shows: there may be thousands of files.
func (s *source) free() {
	s.recordReader = nil
	if s.table != nil {
		s.table.rows, s.table.slab, s.table.queue = nil, nil, nil
	}
}

// openSource looks at the beginning of a file and chooses its reader. Its errors say what the file is
// instead, and what to do.
func openSource(name string, r io.Reader, o *sourceOptions) (*source, error) {
	head := bufio.NewReaderSize(r, headBytes)
	var notes []string
	for range 2 { // a file that is compressed twice is none of ours
		plain, how, err := decompress(head)
		if err != nil {
			return nil, err
		}
		if how == "" {
			break
		}
		notes, head = append(notes, how), plain
	}
	text, how, err := decode(head, o.encoding)
	if err != nil {
		return nil, err
	}
	if how != "" {
		notes = append(notes, how)
	}
	s := &source{}
	b := &beginning{Reader: text, name: name, options: o}
	if err := b.choose(s); err != nil {
		return nil, err
	}
	s.what = strings.Join(append([]string{s.what}, notes...), ", ")
	return s, nil
}

// refusal says what a file is that is known by its first bytes and cannot be read, or "".
func refusal(begin []byte) string {
	for _, kind := range []struct{ begin, refusal string }{
		{"PK\x03\x04", "is an Excel workbook or another zip file: in Excel, save it as \"CSV UTF-8\"; unzip any other"},
		{"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an old Excel workbook: save it as \"CSV UTF-8\""},
		{"\xfd7zXZ\x00", "is compressed by xz: pipe it from xz -dc"},
		{"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it"},
		{"PAR1", "is a Parquet file: export it as CSV or NDJSON"},
		{"Obj\x01", "is an Avro file: export it as CSV or NDJSON"},
		{"SQLite format 3\x00", "is a database of SQLite: export a table as CSV"},
		{"%PDF-", "is a PDF: export the table as CSV"},
		{"\xff\xfe\x00\x00", "is UTF-32: convert it to UTF-8"},
	} {
		if bytes.HasPrefix(begin, []byte(kind.begin)) {
			return kind.refusal
		}
	}
	return ""
}

// decompress returns the text of a compressed file, and how it was compressed.
func decompress(head *bufio.Reader) (*bufio.Reader, string, error) {
	begin, err := head.Peek(16)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	if refused := refusal(begin); refused != "" {
		return nil, "", errors.New(refused)
	}
	switch {
	case bytes.HasPrefix(begin, []byte("\x1f\x8b\x08")):
		plain, err := gzip.NewReader(head)
		if err != nil {
			return nil, "", err
		}
		return bufio.NewReaderSize(broken{plain, "gzip"}, headBytes), "gzip", nil
	case bytes.HasPrefix(begin, []byte("\x28\xb5\x2f\xfd")):
		// Without concurrency there is no goroutine that would have to be ended.
		plain, err := zstd.NewReader(head, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, "", err
		}
		return bufio.NewReaderSize(broken{plain, "zstd"}, headBytes), "zstd", nil
	case bytes.HasPrefix(begin, []byte("BZh")) && len(begin) > 9 && bytes.HasPrefix(begin[4:], []byte("1AY&SY")):
		return bufio.NewReaderSize(broken{bzip2.NewReader(head), "bzip2"}, headBytes), "bzip2", nil
	}
	return head, "", nil
}

// broken explains the error of a compressed file.
type broken struct {
	io.Reader
	how string
}

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the %s file is damaged or not complete: %w", b.how, err)
	}
	return n, err
}

// decode returns the text as UTF-8 without a byte order mark.
func decode(head *bufio.Reader, encoding string) (text *bufio.Reader, how string, err error) {
	begin, err := head.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	encoding, mark := encodingOf(begin, encoding)
	_, _ = head.Discard(mark)
	switch encoding {
	case "utf-16le", "utf-16be":
		how = "UTF-16"
	case "windows-1252":
		how = "Windows-1252"
	}
	return newDecoder(head, encoding), how, nil
}

// encodingOf returns the encoding of a text, as far as it shows, and the length of its mark.
func encodingOf(begin []byte, given string) (encoding string, mark int) {
	isPattern := func(zeros ...bool) bool {
		for i, zero := range zeros {
			if len(begin) < len(zeros) || (begin[i] == 0) != zero {
				return false
			}
		}
		return given == "auto"
	}
	switch {
	case bytes.HasPrefix(begin, []byte(byteOrderMark)):
		return "utf-8", len(byteOrderMark)
	case bytes.HasPrefix(begin, []byte("\xff\xfe")):
		return "utf-16le", 2
	case bytes.HasPrefix(begin, []byte("\xfe\xff")):
		return "utf-16be", 2
	case isPattern(false, true, false, true):
		return "utf-16le", 0
	case isPattern(true, false, true, false):
		return "utf-16be", 0
	}
	return given, 0
}

// beginning is the text at a file's beginning.
type beginning struct {
	*bufio.Reader
	name    string
	options *sourceOptions
	text    []byte
	ended   bool
}

// choose fills in what the file is.
func (b *beginning) choose(s *source) error {
	if err := b.readLines(2); err != nil {
		return err
	}
	first := bytes.TrimLeft(b.text, " \t\r\n")
	format := b.options.format
	if format == "auto" {
		format = b.format(first)
	}
	switch {
	case len(first) == 0 && b.ended:
		s.what, s.recordReader = "empty", &ndjson{lines: b.Reader, end: '\n'}
		return nil
	case format == "binary":
		return errors.New("is not text: it has NUL bytes in its first line; export the data as CSV or NDJSON")
	case format == "csv":
		return b.table(s)
	case format == "markup":
		return errors.New("is HTML or XML, not a table or JSON: was it saved from a page that asks to log in? If Excel opens it as a table, save it there as \"CSV UTF-8\"")
	case len(first) > 0 && first[0] == '\x1e':
		s.what, s.recordReader = "JSON text sequence (RFC 7464)", &ndjson{lines: b.Reader, end: '\x1e', line: 1}
	case format == "json":
		s.what, s.recordReader = "JSON objects over several lines", newDocument(b.Reader)
		if bytes.HasPrefix(first, []byte{'['}) {
			s.what = "JSON array"
		}
	default:
		s.what, s.recordReader = "NDJSON", &ndjson{lines: b.Reader, end: b.eol()}
	}
	if given := b.options.columns.given(); len(given) > 0 {
		return fmt.Errorf("is read as %s and not as a table, so there are no columns for %s: publish it by itself, without that", s.what, strings.Join(given, ", "))
	}
	return nil
}

// readLines peeks until the beginning has some lines, or all of a small file. It does not wait for
// more, as somebody may be typing.
func (b *beginning) readLines(lines int) error {
	for want := 1; ; want = len(b.text) + 1 {
		_, err := b.Peek(want)
		b.text, _ = b.Peek(b.Buffered())
		text := bytes.TrimLeft(b.text, " \t\r\n")
		switch {
		case errors.Is(err, io.EOF):
			b.ended = true
			return nil
		case err != nil:
			return err
		case len(b.text) == headBytes || bytes.Count(text, []byte{'\n'}) >= lines:
			return nil
		case bytes.IndexByte(text, '\n') >= 0 && !b.needsSecond(text):
			return nil
		}
	}
}

// needsSecond reports whether the second line decides what the file is: the first may be the
// beginning of an object, or "sep=;".
func (b *beginning) needsSecond(text []byte) bool {
	first, _, _ := bytes.Cut(text, []byte("\n"))
	if first[0] == '{' {
		return !jsontext.Value(first).IsValid()
	}
	return first[0] == '[' || hasPrefixFold(first, "sep=")
}

func hasPrefixFold(text []byte, prefix string) bool {
	return len(text) >= len(prefix) && strings.EqualFold(string(text[:len(prefix)]), prefix)
}

// format is csv, json or ndjson by what the text begins with; only where that tells nothing the
// file's name has a word.
func (b *beginning) format(first []byte) string {
	if len(first) == 0 || first[0] == '\x1e' {
		return "ndjson"
	}
	switch first[0] {
	case '{':
		if b.isPretty(first) {
			return "json"
		}
		return "ndjson"
	case '[':
		line, rest, _ := bytes.Cut(first, []byte{b.eol()})
		if jsontext.Value(line).IsValid() && bytes.HasPrefix(rest, []byte("{")) {
			return "ndjson"
		}
		return "json"
	case '<':
		return "markup"
	}
	if line, _, _ := bytes.Cut(first, []byte{'\n'}); bytes.IndexByte(line, 0) >= 0 {
		return "binary"
	}
	hasObject := bytes.Contains(b.text, []byte("\n{"))
	if hasObject && (b.isNamed(".ndjson", ".jsonl", ".json") || !b.isNamed(".csv", ".tsv", ".txt") && !b.hasHeader()) {
		return "ndjson"
	}
	return "csv"
}

func (b *beginning) isNamed(extensions ...string) bool {
	name := strings.ToLower(b.name)
	for _, outer := range []string{".gz", ".zst", ".bz2"} {
		name = strings.TrimSuffix(name, outer)
	}
	return slices.Contains(extensions, filepath.Ext(name))
}

// isPretty reports whether the first object goes on in the next line, or shares its line with another.
func (b *beginning) isPretty(first []byte) bool {
	line, rest, found := bytes.Cut(first, []byte{b.eol()})
	d := jsontext.NewDecoder(bytes.NewReader(line), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	_, err := d.ReadValue()
	switch {
	case err == nil:
		return bytes.HasPrefix(bytes.TrimLeft(line[d.InputOffset():], " \t"), []byte("{"))
	case !found || !errors.Is(err, io.ErrUnexpectedEOF):
		return false
	}
	second, _, _ := bytes.Cut(rest, []byte{b.eol()})
	return !bytes.HasPrefix(second, []byte("{"))
}

// eol is what ends lines. A lone '\r' does where there is no '\n' at all, but within quotes.
func (b *beginning) eol() byte {
	quoted, cr := false, false
	for i, c := range b.text {
		switch {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '\n':
			return '\n'
		case c == '\r':
			cr = cr || i+1 < len(b.text) && b.text[i+1] != '\n' || i+1 == len(b.text) && b.ended
		}
	}
	if cr {
		return '\r'
	}
	return '\n'
}

// table makes the reader of a table.
func (b *beginning) table(s *source) error {
	eol := b.eol()
	delimiter, lines := b.options.delimiter, 0
	if hasPrefixFold(b.text, "sep=") {
		line, _, _ := bytes.Cut(b.text, []byte{eol})
		mark := bytes.TrimRight(line[len("sep="):], "\r")
		if delimiter == 0 && len(mark) == 1 {
			delimiter = mark[0]
		}
		lines = 1
		_, _ = b.Discard(min(len(line)+1, len(b.text)))
		b.text = b.text[min(len(line)+1, len(b.text)):]
	}
	if delimiter == 0 {
		delimiter, _ = b.separator()
	}
	rows := newScanner(b.Reader, delimiter, eol, b.options.multiline)
	rows.line += lines
	rows.short = b.options.columns.shortRows
	s.table = newTable(rows, &b.options.columns)
	s.table.anyUTF8 = b.options.encoding != "auto"
	s.what = "table separated by " + separatorName(delimiter)
	if eol == '\r' {
		s.what += ", lines end with CR"
	}
	s.recordReader = s.table
	return nil
}

const separators = ",;\t|"

func separatorName(c byte) string {
	switch c {
	case ',':
		return "commas"
	case ';':
		return "semicolons"
	case '\t':
		return "tabs"
	case '|':
		return "bars (|)"
	}
	return "the given separator"
}

func (b *beginning) hasHeader() bool {
	_, recognised := b.separator()
	return recognised
}

// separator finds the separator of the first row: with it, the row has a column for the users' ids,
// or else the most cells.
func (b *beginning) separator() (byte, bool) {
	best, most, recognised := byte(','), 0, false
	m := mapping{columnOptions: &b.options.columns}
	for _, c := range []byte(separators) {
		l := lexer{data: bytes.TrimLeft(b.text, "\r\n"), delimiter: c, eol: b.eol(), ended: true}
		if l.row() != nil {
			continue
		}
		names := make([]string, len(l.cells))
		for i, cell := range l.cells {
			names[i] = strings.TrimSpace(string(cell.value()))
		}
		has := m.findUser(names) >= 0
		if has && !recognised || has == recognised && len(names) > most {
			best, most, recognised = c, len(names), has
		}
	}
	return best, recognised
}
