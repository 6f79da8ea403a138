package userpilot_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

const bom = "\xef\xbb\xbf"

// A captive portal, a proxy or a wrong host answers 200 with a web page: the call was not accepted.
func TestPages(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, contentType, body string
		page                    bool
	}{
		{"nothing", "", "", false},
		{"an empty page", "text/html", "", false},
		{"blanks", "text/html", " \r\n\t", false},
		{"only a byte order mark", "", bom, false},
		{"JSON", "application/json", `{"ok":true}`, false},
		{"JSON that quotes a page", "application/json", `"<html>"`, false},
		{"JSON as HTML", "text/html", "{}", false},
		{"plain text", "text/plain", "ok", false},
		{"one letter", "text/html", "<", false},
		{"a sign", "text/plain", "<3", false},
		{"HTML", "text/html; charset=utf-8", "<html><body>Log in</body></html>", true},
		{"HTML as JSON", "application/json", "<html>", true},
		{"HTML without a type", "", "<!DOCTYPE html>", true},
		{"upper case", "", "<HTML>", true},
		{"only a part", "", "<a", true},
		{"after blanks", "", "\r\n\t <html>", true},
		{"after a byte order mark", "", bom + "<html>", true},
		{"after blanks and a byte order mark", "", " \n" + bom + "<html>", true},
		{"after a byte order mark and blanks", "", bom + " \n<html>", true},
		{"after each", "", "\n" + bom + "\n<html>", true},
		{"a comment", "", "<!-- -->", true},
		{"the end of an element", "", "</head>", true},
		{"after a form feed", "", "\f<html>", true},
		{"after two byte order marks", "", bom + bom + "<html>", true},
		{"UTF-16", "", "\xff\xfe<\x00h\x00", true},
		{"UTF-16, big-endian", "", "\xfe\xff\x00<\x00h", true},
		{"gzip", "", "\x1f\x8b\x08", true},
		{"XML", "application/xml", "<?xml version=\"1.0\"?><error/>", true},
		{"after more blanks than are read", "", strings.Repeat(" ", 4096) + "<html>", false},
		{"above 1 MiB", "", "<html>" + strings.Repeat("x", 1<<20), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = []string{test.contentType}
				_, _ = io.WriteString(w, test.body)
			})
			status, err := client.Attempt(soon(t), userpilot.Call{Body: sample})
			if status != 200 || (err != nil) != test.page {
				t.Fatalf("answered %d: %v, want a page: %t", status, err, test.page)
			}
			if test.page {
				f := failureOf(t, err)
				if want := (userpilot.Error{Status: 200, Sent: true}); *f != want || f.Error() != "identify: answered 200 with a web page, which is not Userpilot's answer" {
					t.Errorf("got %+v, %v", *f, f)
				}
			}
			v, err := client.Validate(soon(t))
			if err != nil || v.Page != test.page {
				t.Errorf("validate: %+v, %v", v, err)
			}
		})
	}
}

// Validate tells a page only where the status says that all is well, and of a refusal whose it is.
func TestPageOfARefusal(t *testing.T) {
	t.Parallel()
	for body, fromAPI := range map[string]bool{"<html>": false, "": false, "no": false, `{"error":"no"}`: true} {
		client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, body)
		})
		if v, err := client.Validate(soon(t)); err != nil || v.Page || v.FromAPI != fromAPI {
			t.Errorf("%s: %+v, %v", body, v, err)
		}
	}
}

// The beginning of a page is enough, however it comes and ends.
func TestPagesInPieces(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, answer string
		page         bool
	}{
		{"cut", "Content-Length: 100\r\n\r\n<html>", true},
		{"cut in a chunk", "Transfer-Encoding: chunked\r\n\r\nff\r\n<html>", true},
		{"cut before it", "Content-Length: 100\r\n\r\n", false},
		{"cut in it", "Content-Length: 100\r\n\r\n<", false},
		{"a letter in each chunk", "Transfer-Encoding: chunked\r\n\r\n1\r\n \r\n1\r\n<\r\n1\r\nh\r\n0\r\n\r\n", true},
		{"until the end", "\r\n<html>", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			endpoint := listen(t, func(conn net.Conn) {
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+test.answer)
			})
			err := newClient(t, userpilot.ClientConfig{Endpoint: endpoint}).Identify(soon(t), sample)
			if (err != nil) != test.page {
				t.Errorf("got %v, want a page: %t", err, test.page)
			}
		})
	}
}

// A page may come slowly; a body that is none costs no more than two seconds.
func TestTricklingPages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			body          string
			pause, within time.Duration
			page          bool
		}{
			{"<html>", 900 * time.Millisecond, 2050 * time.Millisecond, true},
			{"<html>", 3 * time.Second, 2 * time.Second, false},
			{bom + "<html>", 100 * time.Millisecond, 750 * time.Millisecond, true},
			{"{}", 100 * time.Millisecond, 350 * time.Millisecond, false},
			{"", 100 * time.Millisecond, 2 * time.Second, false},
		} {
			stand := userpilottest.New(userpilottest.Options{Faults: func(userpilottest.Request) userpilottest.Fault {
				return userpilottest.Fault{Body: []byte(test.body), Trickle: test.pause}
			}})
			client := newClient(t, userpilot.ClientConfig{Transport: stand.Transport()})
			start := time.Now()
			err := client.Identify(t.Context(), sample)
			if took := time.Since(start); (err != nil) != test.page || took != test.within {
				t.Errorf("%q every %v: %v after %v", test.body, test.pause, err, took)
			}
		}
	})
}

// A small page does not cost the connection.
func TestPageKeepsTheConnection(t *testing.T) {
	t.Parallel()
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	client := newClient(t, userpilot.ClientConfig{Endpoint: server.URL})
	for range 5 {
		_ = failureOf(t, client.Identify(soon(t), sample))
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// Only JSON is Userpilot's own answer.
func TestFromAPI(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 64<<10)
	for i, test := range []struct {
		body string
		want bool
	}{
		{`{}`, true},
		{`[]`, true},
		{" \n" + `{"errors":[]}` + "\r\n ", true},
		{bom + `{"errors":[]}`, true},
		{`{"message":"a","message":"b"}`, true},
		{"{\"message\":\"\xff\"}", true},
		{`{"message":"` + long + `"}`, true}, // longer than is read
		{`{"` + long, true},                  // as far as that was read
		{"", false},
		{" ", false},
		{"400", false},
		{`"Bad Request"`, false},
		{"null", false},
		{"Bad Request", false},
		{"<html>", false},
		{"{", false},
		{`{"message":`, false},
		{`{"message":"a"} and more`, false},
		{"{oops " + long, false},
		{"[error] " + long, false},
		{long, false},
	} {
		client := newClient(t, userpilot.ClientConfig{Transport: answering(func() *http.Response {
			return &http.Response{StatusCode: 422, Body: io.NopCloser(strings.NewReader(test.body))}
		})})
		if f := failureOf(t, client.Identify(soon(t), sample)); f.FromAPI != test.want {
			t.Error("row " + strconv.Itoa(i) + ": " + strconv.FormatBool(f.FromAPI) + ", want " + strconv.FormatBool(test.want))
		}
	}
}
