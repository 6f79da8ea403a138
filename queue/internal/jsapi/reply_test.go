package jsapi

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

func TestParseReply(t *testing.T) {
	t.Parallel()
	want := Reply{Deliveries: 2, Stream: 34, Consumer: 5, Stored: time.Unix(0, 1700000000123456789), Pending: 6}
	for name, reply := range map[string]string{
		"version 1":            "$JS.ACK.S.C.2.34.5.1700000000123456789.6",
		"version 2":            "$JS.ACK.hub.aCCount.S.C.2.34.5.1700000000123456789.6.token",
		"version 2, no domain": "$JS.ACK._.aCCount.S.C.2.34.5.1700000000123456789.6.token",
		"version 2, no token":  "$JS.ACK._.aCCount.S.C.2.34.5.1700000000123456789.6",
	} {
		if got, err := ParseReply(reply); err != nil || got != want {
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
		if got, err := ParseReply(reply); err == nil {
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
		got, err := ParseReply(reply)
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
		want := Reply{Deliveries: meta.NumDelivered, Stream: meta.Sequence.Stream, Consumer: meta.Sequence.Consumer, Stored: meta.Timestamp, Pending: meta.NumPending}
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
