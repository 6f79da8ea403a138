package publish

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// document reads the objects of a JSON array, or of a file that has one after the other, over any
// number of lines. It finds only where they begin and end; what is in them is for others to check. An
// object is bounded like a line, the file is not.
type document struct {
	text     *bufio.Reader
	line     int
	objects  int // read so far
	begun    int // the line in which the last one begins
	array    bool
	comma    bool // since the last object
	closed   bool // the array has ended
	brackets []byte
}

func newDocument(r *bufio.Reader) *document { return &document{text: r, line: 1} }

func (d *document) wrong(what string) error {
	return fmt.Errorf("line %d: is not JSON: %s", d.line, what)
}

func (d *document) next() (record, error) {
	for {
		c, err := d.byte()
		switch {
		case errors.Is(err, io.EOF) && d.array && !d.closed:
			return record{}, d.wrong("the array does not end")
		case err != nil:
			return record{}, err
		case strings.IndexByte(" \t\r\n", c) >= 0:
		case d.closed:
			return record{}, d.wrong("something follows the end of the array")
		case c == '{' && d.array && d.objects > 0 && !d.comma:
			return record{}, d.wrong("a comma is missing before an object")
		case c == '{':
			return d.object()
		case !d.separates(c):
			return record{}, d.wrong("an object must begin here")
		}
	}
}

// separates takes what may stand between objects.
func (d *document) separates(c byte) bool {
	switch {
	case c == '[' && !d.array && d.objects == 0:
		d.array = true
	case c == ']' && d.array && !d.comma:
		d.closed = true
	case c == ',' && d.array && d.objects > 0 && !d.comma:
		d.comma = true
	default:
		return false
	}
	return true
}

func (d *document) byte() (byte, error) {
	c, err := d.text.ReadByte()
	if c == '\n' && err == nil {
		d.line++
	}
	return c, err
}

// position is where the object begins whose first bracket was read.
func (d *document) position() position {
	p := position{line: d.line}
	if d.begun == d.line {
		p.object = d.objects + 1
	}
	d.begun = d.line
	return p
}

// object reads up to the bracket that closes the object. One that is too long is a bad one, and read to
// its end.
func (d *document) object() (record, error) {
	r := record{position: d.position()}
	body := bounded{'{'}
	d.brackets = append(d.brackets[:0], '}')
	err := d.rest(&body)
	switch {
	case errors.Is(err, io.EOF):
		return r, d.wrong(fmt.Sprintf("the object that begins in line %d does not end", r.line))
	case err != nil:
		return r, err
	}
	d.objects++
	d.comma = false
	if r.body = body; len(body) > maxLineBytes {
		r.body, r.err = nil, errLongObject
	}
	return r, nil
}

var errLongObject = fmt.Errorf("object: is longer than %s", flags.FormatSize(maxLineBytes))

// bounded is a text that is not kept to its end if it is too long.
type bounded []byte

func (b *bounded) add(c byte) {
	if len(*b) <= maxLineBytes {
		*b = append(*b, c)
	}
}

// rest reads the rest of the object.
func (d *document) rest(body *bounded) error {
	quoted := false
	for len(d.brackets) > 0 {
		c, err := d.byte()
		if err != nil {
			return err
		}
		body.add(c)
		switch {
		case quoted && c == '\\':
			if c, err = d.byte(); err == nil {
				body.add(c)
			}
		case c == '"':
			quoted = !quoted
		case quoted:
		case len(d.brackets) > maxLineBytes:
			return d.wrong("the brackets do not end")
		case c == '{':
			d.brackets = append(d.brackets, '}')
		case c == '[':
			d.brackets = append(d.brackets, ']')
		case c == '}' || c == ']':
			if d.brackets[len(d.brackets)-1] != c {
				return d.wrong("a bracket closes that was not opened")
			}
			d.brackets = d.brackets[:len(d.brackets)-1]
		}
	}
	return nil
}
