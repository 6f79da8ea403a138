//go:build !noembed

package queue

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

func TestSubjectsOfADomain(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(nil, Topology{Domain: "hub"})
		for subject, want := range map[string]string{
			"$JS.API.STREAM.INFO.X":     "$JS.hub.API.STREAM.INFO.X",
			"$KV.userpilot_identify.x":  "$JS.hub.API.$KV.userpilot_identify.x",
			"$JS.hub.API.STREAM.INFO.X": "$JS.hub.API.STREAM.INFO.X",
			"$JS.ACK.X.>":               "$JS.ACK.X.>",
			"userpilot.identify.x":      "userpilot.identify.x",
		} {
			if got := q.api.Subject(subject); got != want {
				t.Errorf("%s becomes %s, want %s", subject, got, want)
			}
			if got := s.queue(nil).api.Subject(subject); got != subject {
				t.Errorf("without a domain %s becomes %s", subject, got)
			}
		}
		nc := s.Dial(nil)
		keys, err := nc.SubscribeSync("$JS.hub.API.$KV.>")
		s.Must(err)
		s.Must(nc.FlushWithContext(s.Soon(time.Minute)))
		s.Must(q.api.Send(nats.NewMsg("$KV.userpilot_identify.x")))
		if _, err := keys.NextMsgWithContext(s.Soon(time.Minute)); err != nil {
			t.Error(err)
		}
	})
}

// A missing permission is named as the server's configuration must have it.
func TestPermissionsOfADomain(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{DontListen: true, NoLog: true, NoSigs: true, Users: []*server.User{{
		Username: "u", Password: "p", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"$JS.API.>", "$KV.>"}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.Shutdown()
	nc, err := nats.Connect("", nats.InProcessServer(s), nats.UserInfo("u", "p"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	q, err := New(nc, Topology{Domain: "hub"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	needed := []Permission{jsapi.ToRequest("INFO"), q.api.ToWriteKey("x")}
	missing, err := q.api.MissingPermissions(t.Context(), needed)
	if err != nil || len(missing) != 2 || missing[0].Subject != "$JS.hub.API.INFO" || missing[1].Subject != "$JS.hub.API.$KV.userpilot_identify.>" {
		t.Errorf("got %v, %v", missing, err)
	}
	if err := q.api.Require(t.Context(), needed[0]); err == nil || !strings.Contains(err.Error(), "publish to $JS.hub.API.INFO;") {
		t.Errorf("got %v", err)
	}
	if _, err := q.api.StreamInfo(t.Context(), "X", ""); err == nil || !strings.Contains(err.Error(), "publish to $JS.hub.API.STREAM.INFO.X;") {
		t.Errorf("got %v", err)
	}
}

func TestInvalidDomain(t *testing.T) {
	t.Parallel()
	for _, domain := range []string{"a.b", "*", ">", "a b", "API", "ACK", strings.Repeat("a", 65)} {
		if err := (Topology{Domain: domain}).Validate(); err == nil || !strings.HasPrefix(err.Error(), "domain: ") {
			t.Errorf("%q: %v", domain, err)
		}
	}
}
