//go:build !noembed

package inspector

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// realServer runs a server on a port of this machine, outside of any bubble.
func realServer(t *testing.T, o *natsserver.Options) *natsserver.Server {
	t.Helper()
	o.Host, o.Port, o.NoSigs, o.NoLog = "127.0.0.1", natsserver.RANDOM_PORT, true, true
	n, err := natsserver.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	t.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	return n
}

func linkOf(t *testing.T, url string, options ...nats.Option) (queue.ConnInfo, *queue.Queue) {
	t.Helper()
	nc, err := nats.Connect(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := q.ConnInfo()
	if err != nil {
		t.Fatal(err)
	}
	return l, q
}

func TestLink(t *testing.T) {
	t.Parallel()
	n := realServer(t, &natsserver.Options{Username: "u", Password: "secret", MaxPayload: 1 << 20})
	url := strings.Replace(n.ClientURL(), "nats://", "nats://u:secret@", 1)
	l, q := linkOf(t, url)
	if l.URL != n.ClientURL() || l.Version != natsserver.VERSION || l.TLS != "" || !l.Expires.IsZero() || l.Trip <= 0 || l.MaxEvent != queue.MaxMessageBytes || l.Inboxes != "_INBOX.>" {
		t.Errorf("got %+v", l)
	}
	if l, _ := linkOf(t, url, nats.CustomInboxPrefix("_MINE")); l.Inboxes != "_MINE.>" {
		t.Errorf("answers arrive on %s", l.Inboxes)
	}
	q.API().NATS.Close()
	if _, err := q.ConnInfo(); err == nil {
		t.Error("on a closed connection")
	}
}

func TestLinkTLS(t *testing.T) {
	t.Parallel()
	identity := httptest.NewTLSServer(nil) // for its certificate
	defer identity.Close()
	roots := x509.NewCertPool()
	roots.AddCert(identity.Certificate())
	n := realServer(t, &natsserver.Options{TLS: true, TLSTimeout: 10, TLSConfig: &tls.Config{Certificates: identity.TLS.Certificates, MinVersion: tls.VersionTLS12}})
	l, _ := linkOf(t, n.ClientURL(), nats.Secure(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	if l.TLS != "TLS 1.3" || !l.Expires.Equal(identity.Certificate().NotAfter) {
		t.Errorf("got %+v", l)
	}
}

func (s *sim) inspect(q *queue.Queue) []StreamState {
	s.T.Helper()
	streams, err := New(q).InspectStreams(s.T.Context())
	s.Must(err)
	if len(streams) != len(q.Topology().StreamConfigs(0)) || streams[0].Name != workName || streams[1].Name != deadName {
		s.T.Fatalf("got %+v", streams)
	}
	return streams
}

func TestInspectStreams(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all, few := s.WithUsers([]string{"$JS.API.STREAM.INFO." + workName, "$JS.API.STREAM.INFO." + kvName, "$JS.API.STREAM.CREATE." + kvName})
		q, err := queue.New(all, queue.Topology{}, nil)
		s.Must(err)
		s.publish(q, "ann", "bob")
		for _, x := range s.inspect(q) {
			if x.Err != nil || x.Missing || len(x.Differences) > 0 || x.MaxMessages != 0 || x.MaxBytes != 0 {
				t.Errorf("as they were made: %+v", x)
			}
		}
		work := s.inspect(q)[0]
		if work.Messages != 2 || work.Bytes == 0 || work.MaxAge != 0 || time.Since(work.Oldest) > time.Minute {
			t.Errorf("the work stream: %+v", work)
		}
		if dead := s.inspect(q)[1]; dead.Messages != 0 || dead.MaxAge != queue.DeadLetterRetention || !dead.Oldest.IsZero() {
			t.Errorf("the dead letters: %+v", dead)
		}

		// An operator has set limits, which is allowed, and a discard policy, which is not.
		config := s.info(q, workName).Config
		config.MaxMsgs, config.MaxBytes, config.Discard = 10, 1<<20, jetstream.DiscardOld
		_, err = q.API().JetStream.UpdateStream(t.Context(), config)
		s.Must(err)
		work = s.inspect(q)[0]
		if work.MaxMessages != 10 || work.MaxBytes != 1<<20 || len(work.Differences) != 1 || work.Differences[0].Field != "discard" {
			t.Errorf("with limits: %+v", work)
		}
		if got := s.info(q, workName).Config.Discard; got != jetstream.DiscardOld {
			t.Error("it was changed")
		}

		// A stream is missing, and another may not be read. Both are detected without a timeout.
		s.Must(q.API().JetStream.DeleteStream(t.Context(), kvName))
		q, err = queue.New(few, queue.Topology{}, nil)
		s.Must(err)
		begun := time.Now()
		streams := s.inspect(q)
		if took := time.Since(begun); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if x := streams[1]; jsapi.AsPermissionError(x.Err) == nil || jsapi.AsPermissionError(x.Err).Subject != "$JS.API.STREAM.INFO."+deadName {
			t.Errorf("unreadable: %+v", x)
		}
		if x := streams[2]; !x.Missing || !x.MayCreate || x.Err != nil {
			t.Errorf("missing: %+v", x)
		}
		if _, err := New(q).ReadClock(t.Context()); err == nil || !strings.Contains(err.Error(), "does not exist") {
			t.Errorf("the clock without a bucket: %v", err)
		}
		if _, err := New(q).Account(t.Context()); jsapi.AsPermissionError(err) == nil || jsapi.AsPermissionError(err).Subject != "$JS.API.INFO" {
			t.Errorf("the account: %v", err)
		}
	})
}

func TestInspectStreamsWithoutJetStream(t *testing.T) {
	t.Parallel()
	_, q := linkOf(t, realServer(t, &natsserver.Options{}).ClientURL())
	if _, err := New(q).InspectStreams(t.Context()); err == nil || err.Error() != "JetStream is not enabled on this server" {
		t.Errorf("got %v", err)
	}
	account := natsserver.NewAccount("A")
	n := realServer(t, &natsserver.Options{
		JetStream: true, StoreDir: t.TempDir(), Accounts: []*natsserver.Account{account},
		Users: []*natsserver.User{{Username: "u", Password: "p", Account: account}},
	})
	_, q = linkOf(t, n.ClientURL(), nats.UserInfo("u", "p"))
	if _, err := New(q).InspectStreams(t.Context()); err == nil || err.Error() != "JetStream is not enabled for this account" {
		t.Errorf("got %v", err)
	}
}

func TestReadClock(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(&queuetest.Line{Delay: func() time.Duration { return 40 * time.Millisecond }})
		clock, err := New(q).ReadClock(t.Context())
		s.Must(err)
		// One delay is for the permission probe, one for the request itself.
		if clock.Apart != 0 || clock.Trip != 80*time.Millisecond || clock.Ahead < -clock.Trip/2 || clock.Ahead > clock.Trip/2 {
			t.Errorf("got %+v", clock)
		}
	})
}

// Clocks differ only by more than the round trips can explain.
func TestApart(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for name, test := range map[string]struct {
		clocks []Clock
		want   time.Duration
	}{
		"one":                       {[]Clock{{Ahead: time.Hour, Trip: ms}}, 0},
		"the same":                  {[]Clock{{Ahead: 9 * ms, Trip: 10 * ms}, {Ahead: 3 * ms, Trip: 2 * ms}}, 0},
		"far away":                  {[]Clock{{Ahead: 100 * ms, Trip: 300 * ms}, {Ahead: -100 * ms, Trip: 300 * ms}}, 0},
		"one ahead":                 {[]Clock{{Trip: 20 * ms}, {Ahead: 500 * ms, Trip: 40 * ms}, {Ahead: ms, Trip: 20 * ms}}, 470 * ms},
		"all unlike this machine's": {[]Clock{{Ahead: time.Hour, Trip: ms}, {Ahead: time.Hour, Trip: ms}}, 0},
	} {
		if got := apart(test.clocks); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestAccount(t *testing.T) {
	t.Parallel()
	limits := natsserver.JetStreamAccountLimits{MaxStore: 1 << 30, MaxMemory: -1, MaxStreams: 7, MaxConsumers: 100}
	for name, test := range map[string]struct {
		limits map[string]natsserver.JetStreamAccountLimits
		want   Account
	}{
		"none":               {nil, Account{Streams: 5}},
		"of the account":     {map[string]natsserver.JetStreamAccountLimits{"": limits}, Account{Streams: 5, MaxBytes: 1 << 30, MaxStreams: 7, MaxConsumers: 100}},
		"for streams of one": {map[string]natsserver.JetStreamAccountLimits{"R1": limits, "R3": {}}, Account{Streams: 5, MaxBytes: 1 << 30, MaxStreams: 7, MaxConsumers: 100}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			account := natsserver.NewAccount("A")
			n := realServer(t, &natsserver.Options{
				JetStream: true, StoreDir: t.TempDir(), Accounts: []*natsserver.Account{account},
				Users: []*natsserver.User{{Username: "u", Password: "p", Account: account}},
			})
			account, err := n.LookupAccount("A") // another one
			if err != nil {
				t.Fatal(err)
			}
			if err := account.EnableJetStream(test.limits, nil); err != nil {
				t.Fatal(err)
			}
			_, q := linkOf(t, n.ClientURL(), nats.UserInfo("u", "p"))
			if _, err := q.Setup(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if a, err := New(q).Account(t.Context()); err != nil || a != test.want {
				t.Errorf("got %+v, %v", a, err)
			}
		})
	}
}

// What the server would refuse is told in words, before by InspectStreams and then by Setup.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		limits   natsserver.JetStreamAccountLimits
		window   time.Duration
		stranger string // the subject of a stream that is there already
		topology queue.Topology
		want     string // empty if nothing is refused
	}{
		"nothing":              {},
		"a limit is required":  {limits: natsserver.JetStreamAccountLimits{MaxBytesRequired: true}, want: "the NATS account requires a limit of bytes for each stream"},
		"and given":            {limits: natsserver.JetStreamAccountLimits{MaxBytesRequired: true}, topology: queue.Topology{Limits: queue.Limits{Work: 1 << 20, Dead: 1 << 20, Records: 1 << 20}}},
		"a short window":       {window: time.Minute, want: "the NATS server limits duplicate windows to 1m0s, and publishers need 2m0s: raise duplicate_window"},
		"a stranger":           {stranger: "userpilot.>", want: "its subjects belong to another stream: ORDERS has userpilot.identify: "},
		"a stranger elsewhere": {stranger: "userpilot.other.>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			account := natsserver.NewAccount("A")
			n := realServer(t, &natsserver.Options{
				JetStream: true, StoreDir: t.TempDir(), Accounts: []*natsserver.Account{account}, JetStreamLimits: natsserver.JSLimitOpts{Duplicates: test.window},
				Users: []*natsserver.User{{Username: "u", Password: "p", Account: account}},
			})
			account, err := n.LookupAccount("A") // another one
			if err != nil {
				t.Fatal(err)
			}
			test.limits.MaxStore, test.limits.MaxMemory, test.limits.MaxStreams, test.limits.MaxConsumers = 1<<30, -1, -1, -1
			if err := account.EnableJetStream(map[string]natsserver.JetStreamAccountLimits{"": test.limits}, nil); err != nil {
				t.Fatal(err)
			}
			nc, err := nats.Connect(n.ClientURL(), nats.UserInfo("u", "p"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			q, err := queue.New(nc, test.topology, nil)
			if err != nil {
				t.Fatal(err)
			}
			if test.stranger != "" {
				if _, err := q.API().JetStream.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{test.stranger}, Duplicates: time.Second, MaxBytes: 1 << 20}); err != nil {
					t.Fatal(err)
				}
			}
			is := func(who string, err error) {
				t.Helper()
				if got := fmt.Sprint(err); test.want == "" && err != nil || !strings.Contains(got, test.want) {
					t.Errorf("%s: %s", who, got)
				}
			}
			streams, err := New(q).InspectStreams(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			is("doctor", streams[0].Refusal)
			_, err = q.Setup(t.Context(), false)
			is("setup", err)
		})
	}
}

func TestArithmetic(t *testing.T) {
	t.Parallel()
	if got := (ratelimit.Rate{}).Bounds(0, false); got != (ratelimit.RateBounds{}) {
		t.Errorf("without a limit: %+v", got)
	}
	for alone, sustained := range map[bool]float64{false: 597, true: 595} {
		got := ratelimit.Rate{Calls: 600, Window: time.Minute}.Bounds(0, alone)
		if got.Burst != 3 || got.Worst != 600 || got.Sustained < sustained || got.Sustained > sustained+1 {
			t.Errorf("at 600/1m, alone %v: %+v", alone, got)
		}
	}
	for _, r := range []ratelimit.Rate{{Calls: 1, Window: time.Second}, {Calls: 10, Window: time.Second}, {Calls: 200, Window: time.Second}, {Calls: 600, Window: time.Minute}, {Calls: 7, Window: time.Hour}} {
		for _, burst := range []int{0, 1, 2, 50, 1000} {
			for _, alone := range []bool{false, true} {
				if a := r.Bounds(burst, alone); a.Worst > r.Calls || a.Worst < r.Calls-1 || a.Sustained > float64(a.Worst) {
					t.Errorf("%s, burst %d, alone %v: %+v", r, burst, alone, a)
				}
			}
		}
	}
}

// A strict server, one that is not strict, and one without JetStream.
func TestStrict(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{true, false} {
		n := realServer(t, &natsserver.Options{JetStream: true, StoreDir: t.TempDir(), NoJetStreamStrict: !strict})
		_, q := linkOf(t, n.ClientURL())
		if _, err := q.Setup(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if got, err := New(q).Strict(t.Context()); err != nil || got != strict {
			t.Errorf("strict %v: got %v, %v", strict, got, err)
		}
	}
	_, q := linkOf(t, realServer(t, &natsserver.Options{}).ClientURL())
	if _, err := New(q).Strict(t.Context()); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("without JetStream: %v", err)
	}
}
