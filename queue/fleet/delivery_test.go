package fleet

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// A delivery does not keep the header of the message that its body came with.
func TestBodyAlone(t *testing.T) {
	t.Parallel()
	buffer := []byte("header, body")
	for _, m := range []*nats.Msg{{Data: buffer[8:], Header: nats.Header{"A": {"b"}}}, {Data: buffer[8:]}} {
		body := bodyOf(m)
		if string(body) != "body" {
			t.Errorf("%q", body)
		}
		if shared := &body[0] == &buffer[8]; shared != (len(m.Header) == 0) {
			t.Errorf("in the message's buffer: %v", shared)
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
