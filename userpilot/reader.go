package userpilot

import (
	"bytes"
	"iter"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// reader reads one JSON text without copying it. The values that it returns are parts of
// that text, so they stay valid, unlike the values of other decoders.
type reader struct {
	jsontext.Decoder
	source bytes.Buffer // the only type of source that a Decoder reads in place
}

// A Decoder is larger than most events; allocating one per event would cost more than
// reading the event. The pool is the only state that calls share.
var readers = sync.Pool{New: func() any { return new(reader) }} //nolint:gochecknoglobals // a cache without a meaning

func newReader(text []byte) *reader {
	r := readers.Get().(*reader)
	r.reset(text)
	return r
}

func (r *reader) reset(text []byte) {
	r.source = *bytes.NewBuffer(text)
	// We handle duplicate names ourselves: a duplicate property is for Userpilot to judge
	// and only keeps the event from merging.
	r.Reset(&r.source, jsontext.AllowDuplicateNames(true))
}

// free returns the reader to the pool, without the text, which the pool would keep alive.
func (r *reader) free() {
	r.reset(nil)
	readers.Put(r)
}

// span returns the position in the text of value, which must be the value read last.
func (r *reader) span(value jsontext.Value) span {
	end := uint32(r.InputOffset())
	return span{end - uint32(len(value)), end}
}

// members yields the members of an object that is known to be valid. The names are still
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

// unquote returns the text of a valid JSON string. It copies only if something is escaped.
func unquote(quoted jsontext.Value) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	text, _ := jsontext.AppendUnquote(nil, quoted)
	return text
}
