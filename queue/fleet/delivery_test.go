package fleet

import (
	"bytes"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// A delivery does not keep the header of the message that its body came with, unless it is small
// beside the body.
func TestBodyAlone(t *testing.T) {
	t.Parallel()
	small := nats.Header{"A": {"b"}} // 18 bytes as NATS encodes it
	for _, test := range []struct {
		name   string
		header nats.Header
		length int
		shared bool
	}{
		{"no header", nil, 4, true},
		{"a large body", small, 8 * 18, true},
		{"a body that is not large enough", small, 8*18 - 1, false},
		{"an empty body", small, 0, false},
		{"a large header", nats.Header{"A": {strings.Repeat("b", 4096)}}, 8 * 18, false},
	} {
		m := &nats.Msg{Subject: "s", Reply: "r", Header: test.header, Data: bytes.Repeat([]byte("x"), test.length)}
		body := bodyOf(m)
		if !bytes.Equal(body, m.Data) {
			t.Errorf("%s: %q", test.name, body)
		}
		if shared := len(body) > 0 && &body[0] == &m.Data[0]; shared != test.shared {
			t.Errorf("%s: in the message's buffer: %v", test.name, shared)
		}
	}
}

// A stub has enough to rebuild an event's reply subject.
func TestStub(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ reply, want string }{
		{"$JS.ACK.S.C.1.7.9.1700000000000000000.12", "$JS.ACK.S.C.1.7.9.0.0"},
		{"$JS.ACK.hub.hash.S.C.1.7.9.1700000000000000000.12", "$JS.ACK.hub.hash.S.C.1.7.9.0.0"},
		{"$JS.ACK._.hash.S.C.1.7.9.1700000000000000000.12.token", "$JS.ACK._.hash.S.C.1.7.9.0.0.token"},
	} {
		at, err := jsapi.ParseReply(test.reply)
		if err != nil {
			t.Fatal(err)
		}
		d := Delivery{Sequence: at.Stream, Published: at.Stored, Body: []byte("x"), acks: acksOf(test.reply), number: at.Consumer}
		if again := d.Stub().Delivery(); again.reply() != test.want || !again.Published.Equal(at.Stored) || again.Sequence != 7 {
			t.Errorf("%s: comes to %+v and is acknowledged at %s, want %s", test.reply, again, again.reply(), test.want)
		}
	}
	if d := (Delivery{}).Stub().Delivery(); !d.Published.IsZero() {
		t.Errorf("what has no time was published at %v", d.Published)
	}
}
