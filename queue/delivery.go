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

	reply string // where to acknowledge
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
