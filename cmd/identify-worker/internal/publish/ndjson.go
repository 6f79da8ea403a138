package publish

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// byteOrderMark begins many files that were written on Windows.
const byteOrderMark = "\xef\xbb\xbf"

// ndjson reads one event from each line. It skips empty lines.
type ndjson struct {
	lines *bufio.Reader
	line  int
}

func newNDJSON(r io.Reader) *ndjson {
	return &ndjson{lines: bufio.NewReaderSize(r, 64<<10)}
}

func (n *ndjson) next() (line int, body []byte, bad error, err error) {
	for {
		text, err := n.readLine()
		switch {
		case errors.Is(err, errLongLine):
			return n.line, nil, err, nil
		case err != nil:
			return n.line, nil, nil, err
		}
		if n.line == 1 {
			text = bytes.TrimPrefix(text, []byte(byteOrderMark))
		}
		if text = bytes.TrimSpace(text); len(text) > 0 {
			return n.line, text, nil, nil
		}
	}
}

var errLongLine = fmt.Errorf("line: is longer than %s", flags.FormatSize(maxLineBytes))

// readLine returns a copy of the next line. It skips a line that is too long, and never holds more
// of it than the limit.
func (n *ndjson) readLine() ([]byte, error) {
	n.line++
	var line []byte
	long := false
	for {
		piece, err := n.lines.ReadSlice('\n')
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
