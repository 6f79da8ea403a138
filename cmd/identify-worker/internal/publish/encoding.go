package publish

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// notUTF8 stands for what an encoding does not define. It makes a row or a line a bad one, where a
// replacement would change the data without a word.
const notUTF8 = 0xff

// decoder makes UTF-8 of another encoding.
type decoder struct {
	from *bufio.Reader
	// rune appends the next character.
	rune func(from *bufio.Reader, to []byte) ([]byte, error)
	out  []byte
	err  error
}

func (d *decoder) Read(p []byte) (int, error) {
	if len(d.out) == 0 && d.err == nil {
		d.out = d.out[:0:cap(d.out)]
		for len(d.out) < 32<<10 && d.err == nil {
			d.out, d.err = d.rune(d.from, d.out)
			if d.from.Buffered() < utf8.UTFMax { // the next might block
				break
			}
		}
	}
	n := copy(p, d.out)
	d.out = d.out[n:]
	if n == 0 && d.err != nil {
		return 0, d.err
	}
	return n, nil
}

// newDecoder returns a reader of UTF-8, or r itself.
func newDecoder(r *bufio.Reader, encoding string) *bufio.Reader {
	d := &decoder{from: r}
	switch encoding {
	case "utf-16le":
		d.rune = utf16Rune(binary.LittleEndian)
	case "utf-16be":
		d.rune = utf16Rune(binary.BigEndian)
	case "windows-1252":
		d.rune = windows1252Rune
	default:
		return r
	}
	return bufio.NewReaderSize(d, headBytes)
}

func utf16Rune(order binary.ByteOrder) func(*bufio.Reader, []byte) ([]byte, error) {
	return func(from *bufio.Reader, to []byte) ([]byte, error) {
		unit, err := from.Peek(2)
		if err != nil {
			if errors.Is(err, io.EOF) && len(unit) == 1 {
				_, _ = from.Discard(1)
				return append(to, notUTF8), nil
			}
			return to, err
		}
		r := rune(order.Uint16(unit))
		_, _ = from.Discard(2)
		if !utf16.IsSurrogate(r) {
			return utf8.AppendRune(to, r), nil
		}
		if second, err := from.Peek(2); err == nil {
			if whole := utf16.DecodeRune(r, rune(order.Uint16(second))); whole != utf8.RuneError {
				_, _ = from.Discard(2)
				return utf8.AppendRune(to, whole), nil
			}
		}
		return append(to, notUTF8), nil
	}
}

// windows1252 has the characters from 0x80 to 0x9f; 0 where there is none.
const windows1252 = "€\x00‚ƒ„…†‡ˆ‰Š‹Œ\x00Ž\x00\x00‘’“”•–—˜™š›œ\x00žŸ"

func windows1252Rune(from *bufio.Reader, to []byte) ([]byte, error) {
	b, err := from.ReadByte()
	switch {
	case err != nil:
		return to, err
	case b < 0x80 || b > 0x9f:
		return utf8.AppendRune(to, rune(b)), nil
	}
	n := int(b - 0x80)
	for _, r := range windows1252 {
		if n == 0 && r != 0 {
			return utf8.AppendRune(to, r), nil
		}
		n--
	}
	return append(to, notUTF8), nil
}
