package userpilot

import (
	"bytes"
	"iter"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// reader reads one JSON text without copying it. The values that it hands out are
// parts of that text, so unlike those of other decoders they stay valid.
type reader struct {
	jsontext.Decoder
	source bytes.Buffer // the one source that a Decoder reads in place
}

// A Decoder is larger than most events; making one for each would cost more than
// reading the event. The pool is the only state that calls share.
var readers = sync.Pool{New: func() any { return new(reader) }} //nolint:gochecknoglobals // a cache without a meaning

func newReader(text []byte) *reader {
	r := readers.Get().(*reader)
	r.reset(text)
	return r
}

func (r *reader) reset(text []byte) {
	r.source = *bytes.NewBuffer(text)
	// Duplicate names are for us to judge: two of a property are Userpilot's business,
	// and at most keep an event from merging.
	r.Reset(&r.source, jsontext.AllowDuplicateNames(true))
}

// free gives the reader back, without the text: it would live as long as the pool.
func (r *reader) free() {
	r.reset(nil)
	readers.Put(r)
}

// span returns where value, the last that was read, lies in the text.
func (r *reader) span(value jsontext.Value) span {
	end := uint32(r.InputOffset())
	return span{end - uint32(len(value)), end}
}

// members returns the members of an object that is known to be valid, names still
// quoted and escaped.
func (r *reader) members(object jsontext.Value) iter.Seq2[jsontext.Value, jsontext.Value] {
	return func(yield func(name, value jsontext.Value) bool) {
		r.reset(object)
		if _, err := r.ReadToken(); err != nil {
			return
		}
		for r.PeekKind() != '}' {
			name, err := r.ReadValue()
			if err != nil {
				return
			}
			value, err := r.ReadValue()
			if err != nil || !yield(name, value) {
				return
			}
		}
	}
}

// unquote returns the text of a valid JSON string, without copying it where
// nothing in it is escaped.
func unquote(quoted jsontext.Value) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	text, _ := jsontext.AppendUnquote(nil, quoted)
	return text
}
