package queue

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

func TestParseReply(t *testing.T) {
	t.Parallel()
	want := replyInfo{deliveries: 2, stream: 34, consumer: 5, stored: time.Unix(0, 1700000000123456789), pending: 6}
	for name, reply := range map[string]string{
		"version 1":            "$JS.ACK.S.C.2.34.5.1700000000123456789.6",
		"version 2":            "$JS.ACK.hub.aCCount.S.C.2.34.5.1700000000123456789.6.token",
		"version 2, no domain": "$JS.ACK._.aCCount.S.C.2.34.5.1700000000123456789.6.token",
		"version 2, no token":  "$JS.ACK._.aCCount.S.C.2.34.5.1700000000123456789.6",
	} {
		if got, err := parseReply(reply); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	for name, reply := range map[string]string{
		"nothing":            "",
		"an inbox":           "_INBOX.abc.def",
		"flow control":       "$JS.FC.S.C.abc",
		"too short":          "$JS.ACK.S.C.2.34.5.1700000000123456789",
		"between the two":    "$JS.ACK.S.C.2.34.5.1700000000123456789.6.7",
		"too long":           "$JS.ACK._.a.S.C.2.34.5.1700000000123456789.6.token.more",
		"another system":     "$XX.ACK.S.C.2.34.5.1700000000123456789.6",
		"not an ack":         "$JS.NAK.S.C.2.34.5.1700000000123456789.6",
		"letters":            "$JS.ACK.S.C.2.x.5.1700000000123456789.6",
		"an empty number":    "$JS.ACK.S.C.2..5.1700000000123456789.6",
		"a negative number":  "$JS.ACK.S.C.2.-34.5.1700000000123456789.6",
		"a signed number":    "$JS.ACK.S.C.2.+34.5.1700000000123456789.6",
		"a number too large": "$JS.ACK.S.C.2.99999999999999999999.5.1700000000123456789.6",
	} {
		if got, err := parseReply(reply); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// FuzzParseReply compares it with nats.go's own parser, which reads a non-number as 0, and accepts
// any number of tokens from eleven up.
func FuzzParseReply(f *testing.F) {
	f.Add("$JS.ACK.S.C.2.34.5.1700000000123456789.6")
	f.Add("$JS.ACK._.aCCount.S.C.1.34.5.1700000000123456789.0.token")
	f.Add("$JS.ACK.d.aCCount.S.C.1.34.5.1700000000123456789.0")
	f.Add("$JS.ACK.S.C.1.18446744073709551615.5.1.0")
	f.Add("$JS.ACK.........")
	f.Fuzz(func(t *testing.T, reply string) {
		got, err := parseReply(reply)
		// nats.go refuses to parse a message without a subscription.
		m := &nats.Msg{Reply: reply, Sub: &nats.Subscription{}}
		meta, theirs := m.Metadata()
		if err != nil {
			if theirs == nil && isPlain(reply) {
				t.Errorf("refused, where the client reads %+v", meta)
			}
			return
		}
		if theirs != nil {
			t.Fatalf("read %+v, where the client says: %v", got, theirs)
		}
		want := replyInfo{deliveries: meta.NumDelivered, stream: meta.Sequence.Stream, consumer: meta.Sequence.Consumer, stored: meta.Timestamp, pending: meta.NumPending}
		if got != want {
			t.Errorf("read %+v, where the client reads %+v", got, want)
		}
	})
}

// isPlain reports whether a reply has one of the known lengths, and numbers of a reasonable size
// where numbers belong.
func isPlain(reply string) bool {
	tokens := strings.Split(reply, ".")
	if n := len(tokens); n == 11 || n == 12 {
		tokens = tokens[2:11]
	}
	if len(tokens) != 9 {
		return false
	}
	for _, token := range tokens[4:] {
		if token == "" || len(token) > 18 || strings.Trim(token, "0123456789") != "" {
			return false
		}
	}
	return true
}

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
		at, err := parseReply(test.reply)
		if err != nil {
			t.Fatal(err)
		}
		past, trace := &ReplayInfo{}, &Trace{}
		d := Delivery{Sequence: at.stream, Published: at.stored, Past: past, Trace: trace, Body: []byte("x"), acks: acksOf(test.reply), number: at.consumer}
		if again := d.Stub().Delivery(past, trace); again.reply() != test.want || !again.Published.Equal(at.stored) || again.Past != past || again.Trace != trace || again.Sequence != 7 {
			t.Errorf("%s: comes to %+v and is acknowledged at %s, want %s", test.reply, again, again.reply(), test.want)
		}
	}
	if d := (Delivery{}).Stub().Delivery(nil, nil); !d.Published.IsZero() {
		t.Errorf("what has no time was published at %v", d.Published)
	}
}
