package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/worker"
)

// linesOf are the lines that a check prints.
func linesOf(check func(*examination)) string {
	var out bytes.Buffer
	check(&examination{out: &out})
	return strings.TrimSuffix(out.String(), "\n")
}

// expect compares the lines of a check with how each must begin and what it must hold, with ... for
// what lies between.
func expect(t *testing.T, name string, check func(*examination), want ...string) {
	t.Helper()
	got := linesOf(check)
	lines := strings.Split(got, "\n")
	if got == "" {
		lines = nil
	}
	if len(lines) != len(want) {
		t.Errorf("%s: %d lines, want %d:\n%s", name, len(lines), len(want), got)
		return
	}
	for i, line := range lines {
		line = strings.Join(strings.Fields(line), " ")
		begin, rest, _ := strings.Cut(want[i], "...")
		if !strings.HasPrefix(line, begin) || !strings.Contains(line[len(begin):], rest) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, line, want[i])
		}
	}
}

func TestCheckLink(t *testing.T) {
	t.Parallel()
	here := queue.ConnInfo{URL: "nats://127.0.0.1:4222", Version: "2.15.2", Trip: 412_345, MaxEvent: 896 << 10, Inboxes: "_INBOX.>"}
	with := func(change func(*queue.ConnInfo)) func(*examination) {
		l := here
		change(&l)
		return func(e *examination) { e.checkLink(l) }
	}
	const (
		near  = "ok nats connected to nats://127.0.0.1:4222, version 2.15.2, 412µs away"
		plain = "ok nats_tls none, but the connection stays on this machine"
		sizes = "ok max_payload events of every size can be published"
	)
	expect(t, "good", with(func(*queue.ConnInfo) {}), near, plain, sizes)
	expect(t, "old", with(func(l *queue.ConnInfo) { l.Version = "2.10.29" }),
		"FAIL nats connected to nats://127.0.0.1:4222, version 2.10.29: the NATS server has version 2.10.29, which is too old: upgrade it to 2.11 or newer", plain, sizes)
	expect(t, "a prefix", with(func(l *queue.ConnInfo) { l.Inboxes = "_MINE.>" }),
		"ok nats connected to nats://127.0.0.1:4222, version 2.15.2, replies on _MINE.>, 412µs away", plain, sizes)
	expect(t, "plain", with(func(l *queue.ConnInfo) { l.URL = "nats://nats:4222" }), "ok nats ...", "warn nats_tls none: users' data ...", sizes)
	expect(t, "small", with(func(l *queue.ConnInfo) { l.MaxEvent = 100 << 10 }), near, plain,
		"warn max_payload events above 100.0 KiB cannot be published: raise the server's max_payload to 1MB")
	encrypted := func(left time.Duration) func(*examination) {
		return with(func(l *queue.ConnInfo) { l.TLS, l.Expires = "TLS 1.3", time.Now().Add(left) })
	}
	expect(t, "TLS", encrypted(100*24*time.Hour), near, "ok nats_tls TLS 1.3, the server's certificate is valid until 20...", sizes)
	expect(t, "TLS that ends", encrypted(74*time.Hour), near, "warn nats_tls TLS 1.3, the server's certificate expires in 3d1h, on 20...: renew it", sizes)
	expect(t, "TLS that has ended", encrypted(-time.Hour), near, "warn nats_tls TLS 1.3, the server's certificate: a certificate in its chain expired on 20...", sizes)
}

func TestCheckRights(t *testing.T) {
	t.Parallel()
	rights := worker.Permissions(queue.Topology{})
	needed, optional := rights[1], rights[len(rights)-1]
	check := func(err error, denied ...queue.Permission) func(*examination) {
		return func(e *examination) { e.checkRights(denied, 26, err) }
	}
	expect(t, "all", check(nil), "ok rights 26 of 26 that a worker can use")
	expect(t, "without an optional one", check(nil, optional), "warn rights the user may not publish to $JS.API.INFO (read the account's limits)", "ok rights 25 of 26...")
	expect(t, "without two", check(nil, needed, optional),
		"FAIL rights the user may not publish to $JS.API.STREAM.INFO.USERPILOT_IDENTIFY (read the stream's state): allow it on the NATS server; ...", "warn rights ...")
	expect(t, "without inboxes", check(nil, rights[0]),
		"FAIL rights the user may not subscribe to _INBOX.> (receive events and replies): set --nats-inbox-prefix ...")
	expect(t, "unknown", check(errors.New("try to publish to x: time-out")), "FAIL rights try to publish to x: time-out")
}

func TestCheckStreams(t *testing.T) {
	t.Parallel()
	check := func(s ...inspector.StreamState) func(*examination) {
		return func(e *examination) { e.checkStreams(s) }
	}
	sound := inspector.StreamState{Name: "A"}
	differs := inspector.StreamState{Name: "B", Differences: []queue.Change{{Stream: "B", Field: "discard", Have: "DiscardOld", Want: "DiscardNew"}}}
	expect(t, "sound", check(sound, sound), "ok streams 2, configured as expected")
	expect(t, "one differs", check(sound, differs), "FAIL streams stream B: discard is DiscardOld, should be DiscardNew (match the flags to the stream, or run: identify-worker setup --update)")
	gone := inspector.StreamState{Name: "B", Missing: true, MayCreate: true}
	expect(t, "all are missing", check(gone, gone), "warn streams B is missing: the first worker creates it, or identify-worker setup", "warn streams B is missing: ...")
	expect(t, "one is missing", check(sound, gone), "FAIL streams B is missing, although others exist: run identify-worker setup; ...")
	expect(t, "and must be made", check(inspector.StreamState{Name: "B", Missing: true}), "FAIL streams B is missing, and the user may not create it: run identify-worker setup as a user who may")
	refused := inspector.StreamState{Name: "B", Missing: true, MayCreate: true, Refusal: fmt.Errorf("%w: ORDERS has b.>", queue.ErrSubjectsTaken)}
	expect(t, "and would be refused", check(sound, refused, refused), "FAIL streams B is missing, and cannot be created: its subjects belong to another stream: ORDERS has b.> (see --name)",
		"FAIL streams B is missing, and cannot be created either")
	expect(t, "one cannot be read", check(inspector.StreamState{Name: "B", Err: errors.New("no leader")}, differs), "FAIL streams no leader", "FAIL streams stream B: ...")
}

func TestCheckLimits(t *testing.T) {
	t.Parallel()
	const month = 30 * 24 * time.Hour
	check := func(work, dead inspector.StreamState) func(*examination) {
		work.Name, dead.Name = "WORK", "DLQ"
		return func(e *examination) { e.checkLimits([]inspector.StreamState{work, dead, {Name: "KV", Missing: true}}) }
	}
	none := inspector.StreamState{Messages: 1 << 40, Bytes: 1 << 50}
	expect(t, "no limits", check(none, none), "ok limits no stream is near its limits")
	expect(t, "far from them", check(inspector.StreamState{Messages: 79, MaxMessages: 100}, inspector.StreamState{Messages: 1, MaxAge: month, Oldest: time.Now()}), "ok limits no stream is near its limits")
	expect(t, "near", check(inspector.StreamState{Messages: 80, MaxMessages: 100, Bytes: 9, MaxBytes: 10}, inspector.StreamState{}),
		"warn limits WORK: messages: 80% of the limit is used; at the limit, publishers are rejected: ...", "warn limits WORK: bytes: 90% of the limit ...")
	expect(t, "nearer", check(inspector.StreamState{}, inspector.StreamState{Messages: 1000, Bytes: 950, MaxBytes: 1000}),
		"FAIL limits DLQ: bytes: 95% of the limit is used; at the limit, dead letters cannot be stored and hold up their users: raise ...")
	expect(t, "no room for another", check(inspector.StreamState{Messages: 10, MaxMessages: 10}, inspector.StreamState{Messages: 9, Bytes: 900, MaxBytes: 990}),
		"FAIL limits WORK is full: publishers are rejected: ...", "FAIL limits DLQ is full: dead letters cannot be stored and hold up their users: raise the limit, or ...")
	expect(t, "old", check(inspector.StreamState{}, inspector.StreamState{Messages: 1, MaxAge: month, Oldest: time.Now().Add(50*time.Hour + 30*time.Minute - month)}),
		"warn limits DLQ: the oldest dead letter is deleted in 2d2h: replay or ...")
	expect(t, "short-lived", check(inspector.StreamState{}, inspector.StreamState{Messages: 1, MaxAge: time.Hour, Oldest: time.Now().Add(-30 * time.Minute)}), "ok limits no stream is near its limits")
	expect(t, "for ever", check(inspector.StreamState{}, inspector.StreamState{Messages: 1, Oldest: time.Now().Add(-900 * month / 10)}), "ok limits no stream is near its limits")
}

func TestCheckConsumers(t *testing.T) {
	t.Parallel()
	check := func(account int, streams ...inspector.StreamState) func(*examination) {
		return func(e *examination) { e.checkConsumers(streams, account, 17) }
	}
	none := inspector.StreamState{Name: "A", Consumers: 900}
	few := inspector.StreamState{Name: "A", Consumers: 1, MaxConsumers: 16}
	expect(t, "no limit", check(0, none, none))
	expect(t, "of the account, enough", check(17, none, inspector.StreamState{Name: "B", Consumers: 16}))
	expect(t, "of the account, few", check(5, none), "warn storage A: 5 consumers are allowed, and several replicas need 17, ...")
	expect(t, "of the stream, few", check(100, few), "warn storage A: 16 consumers are allowed, ...")
	expect(t, "in use", check(3, inspector.StreamState{Missing: true}, inspector.StreamState{Name: "B", Consumers: 3}), "FAIL storage B: all of the 3 consumers that are allowed are in use: ...")
}

func TestCheckAccount(t *testing.T) {
	t.Parallel()
	check := func(a inspector.Account, missing int, err error) func(*examination) {
		return func(e *examination) { e.checkAccount(a, missing, err) }
	}
	expect(t, "no limit", check(inspector.Account{Bytes: 1500, Streams: 5}, 5, nil), "ok storage 1.5 KiB used, the account has no limit of its own")
	expect(t, "far", check(inspector.Account{Bytes: 3 << 30, MaxBytes: 5 << 30, Streams: 5, MaxStreams: 5}, 0, nil), "ok storage 3.0 GiB used, of 5.0 GiB")
	expect(t, "full", check(inspector.Account{Bytes: 99, MaxBytes: 100}, 0, nil), "FAIL storage bytes on disk: 99% of the limit ...")
	expect(t, "limits are required", check(inspector.Account{LimitRequired: true}, 1, nil),
		"FAIL storage the NATS account requires a limit of bytes for each stream (run: identify-worker setup --max-bytes 10GiB ...")
	expect(t, "and are there", check(inspector.Account{LimitRequired: true}, 0, nil), "ok storage ...")
	expect(t, "no room", check(inspector.Account{Streams: 2, MaxStreams: 6}, 5, nil), "FAIL storage 5 streams are missing, and the account has 2 of 6: raise the account's limit")
	expect(t, "unknown", check(inspector.Account{}, 0, errors.New("denied")), "warn storage unknown: denied")
}

func TestCheckClock(t *testing.T) {
	t.Parallel()
	check := func(ahead, trip time.Duration) func(*examination) {
		return func(e *examination) { e.checkClock(inspector.Clock{Ahead: ahead, Trip: trip}) }
	}
	expect(t, "same", check(-time.Millisecond, 2*time.Millisecond), "ok clock the same as the server's, within the 1ms that can be measured")
	expect(t, "near", check(-300*time.Millisecond, time.Millisecond), "ok clock this machine's clock is 300ms ahead of the server's")
	expect(t, "a cluster's, near", func(e *examination) { e.checkClock(inspector.Clock{Apart: 100 * time.Millisecond}) }, "ok clock ...")
	expect(t, "a cluster's, apart", func(e *examination) { e.checkClock(inspector.Clock{Apart: 400 * time.Millisecond}) }, "warn clock the clocks of NATS servers are at least 400ms apart: ...", "ok clock ...")
	expect(t, "off", check(4*time.Minute, time.Millisecond), "warn clock this machine's clock is 4m0s behind the server's: ...")
}

func TestCheckRate(t *testing.T) {
	t.Parallel()
	check := func(rate string, burst int, own bool, trip time.Duration) func(*examination) {
		r, err := ratelimit.ParseRate(rate)
		if err != nil {
			t.Fatal(err)
		}
		return func(e *examination) { e.checkRate(r, burst, own, trip) }
	}
	const all = "ok rate 600/1m for the whole fleet: at most 600 calls in any 1m, 99.5% of the limit in the long run, a burst of 3 after a pause"
	expect(t, "default", check("600/1m", 0, false, time.Millisecond), all, "ok round_trip NATS is 1ms away: the limit is never exceeded, and at least 97% of it can be used")
	expect(t, "without NATS", check("600/1m", 0, false, 0), all)
	expect(t, "its own", check("60/1m", 1, true, time.Second), "ok rate 60/1m for each replica: at most 60 calls in any 1m, 99.5% ... a burst of 1 after a pause")
	expect(t, "its own, with a burst", check("600/1m", 0, true, 0), "ok rate 600/1m for each replica: at most 600 calls in any 1m, 99.2% ... a burst of 3 after a pause")
	expect(t, "a short window", check("10/1s", 0, false, 150*time.Millisecond), "ok rate ...", "ok round_trip NATS is 150ms away: ...at least 97%")
	expect(t, "far away", check("10/1s", 0, false, 300*time.Millisecond), "ok rate 10/1s ...", "ok round_trip NATS is 300ms away: ...at least 90%")
	expect(t, "too far", check("600/1m", 0, false, 301*time.Millisecond), all, "warn round_trip NATS is 301ms away: the limit is never exceeded, and ...run the worker closer to NATS")
	expect(t, "high", check("601/1m", 0, false, 0), "warn rate 601/1m is more than the 600 calls a minute ...")
	expect(t, "none", check("0", 0, false, time.Second), "warn rate no limit is enforced, ...")
}

func TestCheckAPI(t *testing.T) {
	t.Parallel()
	check := func(v userpilot.Validation, err error) func(*examination) {
		return func(e *examination) { e.checkAPI("https://api", v, err) }
	}
	reached := userpilot.Validation{Status: 200, Address: "8.8.8.8:443", Took: 52 * time.Millisecond, Connected: 40 * time.Millisecond}
	expect(t, "plain", check(reached, nil), "ok api https://api at 8.8.8.8:443 answers: connecting takes 40ms, and the answer another 12ms")
	far := userpilot.Validation{Status: 200, Took: 1360 * time.Millisecond, Connected: 1100 * time.Millisecond}
	expect(t, "far", check(far, nil), "warn api https://api is slow: connecting takes 1.1s, and the answer another 260ms: ...")
	busy := userpilot.Validation{Status: 200, Took: 2 * time.Second, Connected: 40 * time.Millisecond}
	expect(t, "busy", check(busy, nil), "warn api https://api is slow: connecting takes 40ms, and the answer another 1.96s: ...")
	reached.TLS, reached.Expires = "TLS 1.3", time.Now().Add(50*time.Hour+30*time.Minute)
	expect(t, "TLS", check(reached, nil), "ok api ...", "warn api_tls TLS 1.3, the endpoint's certificate expires in 2d2h, on 20...")
	expect(t, "late", check(userpilot.Validation{}, context.DeadlineExceeded), "FAIL api https://api: context deadline exceeded: no answer within --timeout: ...")
	expect(t, "refused", check(userpilot.Validation{}, errors.New("connection refused")), "FAIL api https://api: connection refused: see --endpoint and --proxy")
}

// The client's own errors, and what to do about each.
func TestCheckAPIUnreached(t *testing.T) {
	t.Parallel()
	key, err := userpilot.NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(config userpilot.ClientConfig) func(*examination) {
		config.Key = key
		client, err := userpilot.NewClient(config)
		if err != nil {
			t.Fatal(err)
		}
		v, err := client.Validate(t.Context())
		return func(e *examination) { e.checkAPI("https://api", v, err) }
	}
	failing := func(err error) userpilot.ClientConfig {
		return userpilot.ClientConfig{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 443}, Err: err}
		}}}
	}
	expect(t, "no name", ask(failing(&net.DNSError{Name: "api", IsNotFound: true})), `FAIL api https://api: DNS knows no host "api": is the name in --endpoint correct, ...`)
	expect(t, "private", ask(failing(userpilot.ErrNotPublic)), "FAIL api https://api: 10.0.0.7:443: a Userpilot host resolves to an address of a private network ...: see --allow-endpoint")
	expect(t, "late", ask(failing(syscall.ETIMEDOUT)), "FAIL api https://api: no connection to 10.0.0.7:443 in time: no answer within --timeout: ...")

	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	patient := &http.Transport{} // however long the machine takes for a handshake
	expect(t, "false", ask(userpilot.ClientConfig{Endpoint: server.URL, Transport: patient}), "FAIL api https://api at 127.0.0.1:... the server's certificate is signed by an unknown authority, ")
	plain := httptest.NewServer(http.NotFoundHandler())
	expect(t, "plain", ask(userpilot.ClientConfig{Endpoint: "https" + strings.TrimPrefix(plain.URL, "http"), Transport: patient}), "FAIL api https://api at 127.0.0.1:...: the server speaks plain HTTP and not TLS: are the scheme and the port in --endpoint correct?")
	plain.Close()
	expect(t, "no proxy", ask(userpilot.ClientConfig{Proxy: plain.URL}), "FAIL api https://api: the proxy 127.0.0.1:... cannot be reached: connection refused by ")
}

func TestCheckKey(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{
		200: "ok key abcd1234 is valid", 204: "ok ...", 401: "FAIL key abcd1234 is not valid, ... answered 401: see USERPILOT_API_KEY", 403: "FAIL ...",
		301: "warn ...", 400: "warn ...", 407: "FAIL key cannot tell whether abcd1234 is valid, a proxy answered 407: it asks for a user and a password, see --proxy",
		404: "warn key cannot tell whether abcd1234 is valid, GET /v1/validate answered 404: is --endpoint Userpilot's API?...",
		429: "warn key cannot tell whether abcd1234 is valid, GET /v1/validate answered 429: Userpilot, or something in front of it, throttles or fails: try again later", 503: "warn ...",
		511: "FAIL key cannot tell whether abcd1234 is valid, the network asks for a login (511): ...",
	} {
		expect(t, fmt.Sprint(status), func(e *examination) { e.checkKey(userpilot.Validation{Status: status, FromAPI: true}, "abcd1234") }, want)
	}
	for _, status := range []int{401, 403} {
		expect(t, "a proxy's", func(e *examination) { e.checkKey(userpilot.Validation{Status: status}, "abcd1234") },
			fmt.Sprintf("FAIL key cannot tell whether abcd1234 is valid, GET /v1/validate answered %d without JSON, ...does a proxy or a firewall refuse it", status))
	}
	expect(t, "plain HTTP to TLS", func(e *examination) {
		e.checkKey(userpilot.Validation{Status: 400, Err: errors.New("the server expects TLS")}, "abcd1234")
	}, "FAIL key cannot tell whether abcd1234 is valid, GET /v1/validate answered 400: the server expects TLS: ...")
	expect(t, "a page", func(e *examination) { e.checkKey(userpilot.Validation{Status: 200, Page: true}, "abcd1234") },
		"FAIL key cannot tell whether abcd1234 is valid, GET /v1/validate answered 200 with a web page, ...does a captive portal or a proxy stand in between (see --proxy), or is --endpoint the wrong host?")
}

func TestCheckFleet(t *testing.T) {
	t.Parallel()
	now := time.Now()
	replica := func(version, key string, calls int) fleet.Replica {
		return fleet.Replica{
			ID: "abcdefgh", Version: version, TTL: 5 * time.Second, Heard: now, Read: now,
			Rate: ratelimit.Rate{Calls: calls, Window: time.Minute}, Report: fleet.Report{Key: key},
		}
	}
	own, held := replica("v1", "aaaa", 600), replica("v1", "aaaa", 600)
	held.Hold, held.HoldSince = "unauthorized", now.Add(-time.Minute)
	check := func(replicas ...fleet.Replica) func(*examination) {
		return func(e *examination) { e.checkFleet(&inspector.Status{Time: now, Replicas: replicas}, own) }
	}
	expect(t, "alike", check(own, own), "ok workers 2 replicas, all partitions have an owner")
	expect(t, "nobody", check(), "warn workers no worker is running: ...")
	expect(t, "without a bucket", func(e *examination) {
		e.checkFleet(&inspector.Status{Time: now, NoBucket: true, Counts: queue.Counts{Missing: []string{"KV"}}}, own)
	})
	expect(t, "a hold", check(held, own), "FAIL workers 1 replica of 2 on hold for 1m0s: ...")
	expect(t, "versions", check(own, replica("v2", "aaaa", 600)), "warn workers the replicas have different versions: v1 (1), v2 (1). Normal ...")
	expect(t, "another version", check(replica("v2", "aaaa", 600)), "warn workers this program is v1, and no replica has that version: v2 (1). Do ...")
	expect(t, "all different", check(replica("v1", "bbbb", 300)),
		"warn workers these flags say 600/1m, and no replica has that rate: 300/1m (1)...", "warn workers the key here is aaaa, and no replica has that key: bbbb (1)...")
	own.Key = "" // not known
	expect(t, "without a key here", check(replica("v1", "bbbb", 600)), "ok workers 1 replica, all partitions have an owner")
}
