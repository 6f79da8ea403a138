package userpilot_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

func TestFailure(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		status int
		header http.Header
		body   string
		want   userpilot.Error
		text   string
	}{
		{
			"documented", 400, http.Header{"X-Request-Id": {"F-1_a.b"}},
			`{"errors":[{"details":"d","error":"e","error_code":"missing_user_id","message":"user_id is required"}]}`,
			userpilot.Error{FromAPI: true, Code: "missing_user_id", Message: "user_id is required", RequestID: "F-1_a.b"},
			"identify: answered 400, code missing_user_id, request F-1_a.b",
		},
		{"error for a message", 400, nil, `{"errors":[{"details":"d","error":"e"}]}`, userpilot.Error{FromAPI: true, Message: "e: d"}, "identify: answered 400"},
		{"details for a message", 400, nil, `{"errors":[{"details":"d","error":null}]}`, userpilot.Error{FromAPI: true, Message: "d"}, "identify: answered 400"},
		{"numeric code", 400, nil, `{"errors":[{"error_code":4001,"message":{"a":1}}]}`, userpilot.Error{FromAPI: true, Code: "4001", Message: "a: 1"}, "identify: answered 400, code 4001"},
		{"nothing", 500, nil, "", userpilot.Error{}, "identify: answered 500"},
		{"HTML", 502, nil, "<html>secret</html>", userpilot.Error{Message: "the answer is not JSON"}, "identify: answered 502"},
		{"other JSON", 500, nil, `["secret"]`, userpilot.Error{FromAPI: true, Message: "secret"}, "identify: answered 500"},
		{"no errors", 500, nil, `{"errors":[]}`, userpilot.Error{FromAPI: true, Message: "the answer is not the documented error"}, "identify: answered 500"},
		{
			"the key comes back", 401, http.Header{"X-Request-Id": {"for " + testKey}},
			`{"errors":[{"error_code":"` + testKey + `","message":"` + strings.Repeat("x", 250) + testKey + `"}]}`,
			userpilot.Error{FromAPI: true, Code: "[redacted]", Message: strings.Repeat("x", 250) + "[redac", RequestID: "for [redacted]"},
			"identify: answered 401",
		},
		{
			"the user comes back", 400, http.Header{"X-Request-Id": {"sarah@example.com"}},
			`{"errors":[{"error_code":"sarah@example.com","message":"sarah@example.com is\nno\u0000 email\u202e"}]}`,
			userpilot.Error{FromAPI: true, Code: "sarah@example.com", Message: "sarah@example.com is no  email", RequestID: "sarah@example.com"},
			"identify: answered 400",
		},
		{
			"long", 400, http.Header{"X-Request-Id": {strings.Repeat("r", 100)}},
			`{"errors":[{"error_code":"` + strings.Repeat("c", 100) + `","message":"` + strings.Repeat("é", 300) + `"}]}`,
			userpilot.Error{FromAPI: true, Code: strings.Repeat("c", 64), Message: strings.Repeat("é", 256), RequestID: strings.Repeat("r", 64)},
			"identify: answered 400, code " + strings.Repeat("c", 64) + ", request " + strings.Repeat("r", 64),
		},
		{"longer than is read", 400, nil, `{"errors":[{"message":"` + strings.Repeat("x", 64<<10) + `"}]}`, userpilot.Error{FromAPI: true, Message: "the answer is not the documented error"}, "identify: answered 400"},
		{"plain text", 413, http.Header{"Content-Type": {"text/plain"}}, "too much\nof " + testKey, userpilot.Error{Message: "too much of [redacted]"}, "identify: answered 413 without JSON"},
		{"deep", 400, nil, strings.Repeat("[", 60_000), userpilot.Error{Message: "the answer is not JSON"}, "identify: answered 400 without JSON"},
		{"retry after", 429, http.Header{"Retry-After": {"7"}}, "", userpilot.Error{RetryAfter: 7 * time.Second}, "identify: answered 429 without JSON"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, userpilot.ClientConfig{Transport: answering(func() *http.Response {
				return &http.Response{StatusCode: test.status, Header: test.header, Body: io.NopCloser(strings.NewReader(test.body))}
			})})
			got := failureOf(t, client.Identify(t.Context(), sample))
			test.want.Status, test.want.Sent = test.status, true
			if *got != test.want {
				t.Errorf("got  %+v\nwant %+v", *got, test.want)
			}
			if got.Error() != test.text {
				t.Errorf("text %q, want %q", got, test.text)
			}
		})
	}
}

// What a server may do to a connection, byte by byte.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	const broken = "identify: no answer: the connection broke, or the answer is not HTTP/1.1"
	for _, test := range []struct{ name, answer, err string }{
		{"nothing", "", "identify: no answer: the connection was closed without an answer"},
		{"half a header", "HTTP/1.1 202 Acc", "identify: no answer: the connection was closed within the answer"},
		{"TLS", "\x15\x03\x01\x00\x02\x02\x46", "identify: no answer: the server speaks TLS and not plain HTTP"},
		{"not HTTP", "sarah@example.com " + testKey + "\r\n\r\n", broken},
		{"bad status", "HTTP/1.1 sarah@example.com\r\n\r\n", broken},
		{"bad header", "HTTP/1.1 202 Accepted\r\nsarah@example.com\r\n\r\n", broken},
		{"endless header", "HTTP/1.1 202 Accepted\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", broken},
		{"accepted, cut in the body", "HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\nhal", ""},
		{"accepted, cut in a chunk", "HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhal", ""},
		{"accepted, bad chunk", "HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n", ""},
		{"accepted until the end", "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 1<<20), ""},
		{"accepted after an interim", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", ""},
		{"refused, cut in the body", "HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{\"err", "identify: answered 400 without JSON"},
		{"switched", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nxxx", "identify: answered 101"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			endpoint := listen(t, func(conn net.Conn) {
				request := make([]byte, 4096)
				_, _ = conn.Read(request)
				_, _ = io.WriteString(conn, test.answer)
			})
			client := newClient(t, userpilot.ClientConfig{Endpoint: endpoint})
			defer client.CloseIdleConnections()
			err := client.Identify(t.Context(), sample)
			if got := fmt.Sprint(err); err != nil && got != test.err || err == nil && test.err != "" {
				t.Errorf("error %q, want %q", got, test.err)
			}
			for ; err != nil; err = errors.Unwrap(err) {
				if strings.Contains(err.Error(), "sarah") || strings.Contains(err.Error(), testKey) {
					t.Errorf("%T quotes the answer", err)
				}
			}
		})
	}
}

// Bodies that never end, over sockets and in fake time.
func TestEndlessAnswers(t *testing.T) {
	t.Parallel()
	for _, status := range []int{202, 500} {
		stand := userpilottest.New(userpilottest.Options{Faults: func(userpilottest.Request) userpilottest.Fault {
			return userpilottest.Fault{Status: status, Endless: true}
		}})
		if err := stand.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stand.Close)
		client := newClient(t, userpilot.ClientConfig{Endpoint: stand.URL()})
		if err := client.Identify(t.Context(), sample); (err == nil) != (status == 202) {
			t.Errorf("%d and an endless body: %v", status, err)
		}
	}
}

func TestTricklingAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			status int
			within time.Duration
		}{{202, 2 * time.Second}, {500, 2 * time.Second}} {
			stand := userpilottest.New(userpilottest.Options{Faults: func(userpilottest.Request) userpilottest.Fault {
				return userpilottest.Fault{Status: test.status, Trickle: 100 * time.Millisecond}
			}})
			client := newClient(t, userpilot.ClientConfig{Transport: stand.Transport()})
			start := time.Now()
			err := client.Identify(t.Context(), sample)
			if (err == nil) != (test.status == 202) {
				t.Errorf("%d and a trickle: %v", test.status, err)
			}
			if took := time.Since(start); took != test.within {
				t.Errorf("%d and a trickle took %v, want %v", test.status, took, test.within)
			}
		}
	})
}
