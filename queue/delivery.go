package queue

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Delivery is one event as the stream handed it over.
type Delivery struct {
	Sequence  uint64    // in the work stream
	Published time.Time // when the stream stored it
	Past      *Past     // of a replay; nil for an event that was never dead
	Trace     *Trace    // nil for an event that was published without
	Body      []byte    // the publisher's bytes; nil once the worker has let go of them

	acks   *acks
	number uint64 // among the deliveries to its consumer
}

// acks is where a consumer's deliveries are acknowledged: at their reply subjects, which are made again
// when they are needed. By the hundred thousand they would take most of the memory.
type acks struct{ before, after string }

// acksOf reads it from a delivery's reply subject, which parseReply has taken.
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

// reply is where to acknowledge. The server reads the two sequences; the time and what was pending
// when it was sent mean nothing any more.
func (d Delivery) reply() string {
	b := make([]byte, 0, 128)
	b = append(b, d.acks.before...)
	b = strconv.AppendUint(b, d.Sequence, 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, d.number, 10)
	b = append(b, ".0.0"...)
	return string(append(b, d.acks.after...))
}

// Stub is what must be known of a [Delivery] whatever it is, in as little memory as can be.
type Stub struct {
	Sequence  uint64
	number    uint64
	published int64 // in nanoseconds since 1970; 0 is the zero time
	acks      *acks
}

// Stub leaves out what most deliveries do not have, and the body.
func (d Delivery) Stub() Stub {
	s := Stub{Sequence: d.Sequence, number: d.number, acks: d.acks}
	if !d.Published.IsZero() {
		s.published = d.Published.UnixNano()
	}
	return s
}

// Delivery is the delivery again, with what the stub leaves out of it but the body.
func (s Stub) Delivery(past *Past, trace *Trace) Delivery {
	d := Delivery{Sequence: s.Sequence, number: s.number, acks: s.acks, Past: past, Trace: trace}
	if s.published != 0 {
		d.Published = time.Unix(0, s.published)
	}
	return d
}

// position is what the reply subject of a delivery tells.
type position struct {
	deliveries uint64 // how often the server has sent it to this consumer; 1 is the first
	stream     uint64 // sequence in the stream
	consumer   uint64 // sequence in the consumer: the next delivery has the next number
	stored     time.Time
	pending    uint64 // events of the partition that this consumer has not sent yet
}

var errReply = errors.New("the message's reply subject is not one of JetStream's")

// parseReply reads the reply subject of a delivery,
//
//	$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]
//
// as nats.go does (jetstream/message.go), but without the allocations of its Metadata:
// this runs for every event.
func parseReply(reply string) (position, error) {
	var tokens [12]string
	n := 0
	for token := range strings.SplitSeq(reply, ".") {
		if n == len(tokens) {
			return position{}, errReply
		}
		tokens[n] = token
		n++
	}
	if tokens[0] != "$JS" || tokens[1] != "ACK" {
		return position{}, errReply
	}
	var numbers []string
	switch n {
	case 9:
		numbers = tokens[4:9]
	case 11, 12:
		numbers = tokens[6:11]
	default:
		return position{}, errReply
	}
	var values [5]uint64
	for i, s := range numbers {
		v, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return position{}, errReply
		}
		values[i] = v
	}
	return position{
		deliveries: values[0],
		stream:     values[1],
		consumer:   values[2],
		stored:     time.Unix(0, int64(values[3])),
		pending:    values[4],
	}, nil
}
