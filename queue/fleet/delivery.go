package fleet

import (
	"strconv"
	"strings"
	"time"
)

// Delivery is one event as delivered by the stream.
type Delivery struct {
	Sequence  uint64              // in the work stream
	Published time.Time           // when the stream stored it
	Backfill  bool                // it was published as backfill
	Header    map[string][]string // of the message; anyone may have written it
	Body      []byte              // the publisher's bytes; nil once the worker has released them

	acks   *acks
	number uint64 // among the deliveries to its consumer
}

// acks is what the reply subjects of a consumer's deliveries have in common. A reply subject is
// rebuilt when it is needed: hundreds of thousands of them would take most of the memory.
type acks struct{ before, after string }

// acksOf extracts acks from a delivery's reply subject, which ParseReply has accepted.
func acksOf(reply string) *acks {
	tokens := strings.Split(reply, ".")
	from, to := 4, 9
	if len(tokens) > 9 {
		from, to = 6, 11
	}
	a := &acks{before: strings.Join(tokens[:from], ".") + ".1."}
	if to < len(tokens) {
		a.after = "." + tokens[to]
	}
	return a
}

// reply is the subject for the acknowledgement. The server reads the two sequences; it ignores the
// time and the pending count.
func (d Delivery) reply() string {
	b := make([]byte, 0, 128)
	b = append(b, d.acks.before...)
	b = strconv.AppendUint(b, d.Sequence, 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, d.number, 10)
	b = append(b, ".0.0"...)
	return string(append(b, d.acks.after...))
}

// Stub is the part of a [Delivery] that every delivery has, in as little memory as possible.
type Stub struct {
	Sequence  uint64 // as in the Delivery
	number    uint64 // shifted by one, and the lowest bit says whether it is backfill
	published int64  // in nanoseconds since 1970; 0 is the zero time
	acks      *acks
}

// Stub returns d without the header and the body.
func (d Delivery) Stub() Stub {
	s := Stub{Sequence: d.Sequence, number: d.number << 1, acks: d.acks}
	if d.Backfill {
		s.number |= 1
	}
	if !d.Published.IsZero() {
		s.published = d.Published.UnixNano()
	}
	return s
}

// Backfill reports whether the event was published as backfill.
func (s Stub) Backfill() bool { return s.number&1 != 0 }

// Delivery restores the delivery, without the header and the body. It can be settled.
func (s Stub) Delivery() Delivery {
	d := Delivery{Sequence: s.Sequence, Backfill: s.Backfill(), number: s.number >> 1, acks: s.acks}
	if s.published != 0 {
		d.Published = time.Unix(0, s.published)
	}
	return d
}
