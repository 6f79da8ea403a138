package publish

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// ndjson reads one event from each line, or from each text of a JSON sequence. It skips empty ones.
type ndjson struct {
	lines *bufio.Reader
	end   byte // of a line: '\n', '\r', or '\x1e' before each text of a sequence
	line  int
}

func (n *ndjson) next() (record, error) {
	for {
		line := n.line
		if n.end != '\x1e' {
			line++
		}
		text, err := n.readLine()
		r := record{position: position{line: line}}
		switch {
		case errors.Is(err, errLongLine):
			r.err = err
			return r, nil
		case err != nil:
			return r, err
		}
		text = bytes.TrimSuffix(text, []byte{'\x1e'})
		// A byte order mark stands where files were put together.
		text = bytes.TrimSpace(bytes.TrimPrefix(text, []byte(byteOrderMark)))
		if len(text) > 0 {
			r.body = text
			return r, nil
		}
	}
}

var errLongLine = fmt.Errorf("line: is longer than %s", flags.FormatSize(maxLineBytes))

// readLine returns a copy of the next line. It skips a line that is too long, and never holds more
// of it than the limit.
func (n *ndjson) readLine() ([]byte, error) {
	var line []byte
	long := false
	for {
		piece, err := n.lines.ReadSlice(n.end)
		n.line += bytes.Count(piece, []byte{'\n'})
		if n.end == '\r' {
			n.line += bytes.Count(piece, []byte{'\r'})
		}
		if long = long || len(line)+len(piece) > maxLineBytes; !long {
			line = append(line, piece...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && (long || len(line) > 0), err == nil:
			if long {
				return nil, errLongLine
			}
			return line, nil
		default:
			return nil, err
		}
	}
}
