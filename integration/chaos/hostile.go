package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// volley is how many messages a hostile publisher sends at a time.
const volley = 40

// careless returns headers that mean something to the server, to its client library or to a worker,
// and that honest events may carry, too: a bridge from HTTP that copies headers is enough for that.
func careless() []nats.Header {
	return []nats.Header{
		{"Status": {"100"}}, {"Status": {"404"}, "Description": {"No Messages"}}, {"Status": {"408"}, "Nats-Pending-Messages": {"500"}},
		{"Status": {"409"}, "Description": {"Consumer Deleted"}}, {"Status": {"400"}}, {"Status": {"503"}}, {"Nats-Pin-Id": {"x"}},
		{"Nats-Sequence": {"1"}, "Nats-Subject": {"x"}, "Nats-Time-Stamp": {"x"}, "Nats-Num-Pending": {"0"}}, {"KV-Operation": {"PURGE"}},
		{"Nats-Last-Consumer": {"1"}, "Nats-Consumer-Stalled": {"x"}}, {"traceparent": {"x"}, "tracestate": {strings.Repeat("x", 5000)}},
	}
}

// forged returns headers that no honest event carries.
func forged() []nats.Header {
	return []nats.Header{
		{"Nats-Msg-Id": {"eve"}}, {"Nats-Rollup": {"all"}}, {"Nats-TTL": {"1s"}}, {"Nats-Expected-Last-Sequence": {"1"}}, {"Nats-Expected-Stream": {"x"}},
		{"Nats-Marker-Reason": {"MaxAge"}}, {"Dead-Replays": {"1"}, "Dead-Letter": {"1700000000000000000.1"}}, {"Dead-Origin": {"9999999999999999999.9"}},
		{"Dead-Forced": {"true"}, "Dead-Replays": {"x"}}, {"Any": {strings.Repeat("x", 30_000)}},
	}
}

// pick returns a copy of one of these headers.
func pick(random *rand.Rand, headers []nats.Header) nats.Header {
	return headers[random.IntN(len(headers))]
}

// disguise returns a header that an honest event may carry.
func disguise(random *rand.Rand) nats.Header { return pick(random, careless()) }

// sendHostile publishes messages that look like the server's own or like a replay, and makes the
// server answer into the pipeline. No other event may be affected.
func (r *round) sendHostile(_ context.Context, random *rand.Rand) {
	defer r.judge.faults.peace("a hostile publisher", everyone)()
	r.counted(func(s *summary) { s.volleys++ })
	r.say("a hostile publisher sends %d messages", volley)
	for range volley {
		m := &nats.Msg{Subject: queue.Topology{}.Subject(fmt.Sprint("eve ", random.IntN(40))), Header: disguise(random)}
		if random.IntN(2) == 0 {
			m.Header = pick(random, forged())
		}
		if random.IntN(2) == 0 {
			m.Data = fmt.Appendf(nil, "hostile %016x", random.Uint64())
		}
		m.Reply = []string{"", "_INBOX.eve", "userpilot.identify.loop"}[random.IntN(3)]
		r.judge.oracle.MayDie(m.Data) // it is no identify
		_ = r.nc.PublishMsg(m)        // it may be refused, or not arrive
	}
}

// isEcho reports whether a dead letter is the server's acknowledgement of another event, sent into
// the pipeline at its publisher's request.
func isEcho(l *jetstream.RawStreamMsg) bool {
	return l.Header.Get("Dead-Reason") == string(deadletter.Invalid) && bytes.HasPrefix(l.Data, []byte("{")) &&
		bytes.Contains(l.Data, []byte(`"stream":"`+queue.Topology{}.StreamName()+`"`)) && !bytes.Contains(l.Data, []byte("user_id"))
}
