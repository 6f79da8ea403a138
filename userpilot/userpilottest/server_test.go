package userpilottest_test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// identify posts a body as documented; edit may change the request.
func identify(t testing.TB, rt http.RoundTripper, url, body string, edit func(*http.Request)) (*http.Response, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/identify", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Token key")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-API-Version", "2020-09-22")
	if edit != nil {
		edit(r)
	}
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

// status posts a body without a socket and returns only the status, 0 for none.
func status(t testing.TB, s *userpilottest.Server, body string) int {
	t.Helper()
	resp, _, err := identify(t, s.Transport(), "http://api", body, nil)
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

// start returns a server on a socket and a transport for it.
func start(t *testing.T, o userpilottest.Options) (*userpilottest.Server, *http.Transport) {
	t.Helper()
	s := userpilottest.New(o)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	transport := new(http.Transport)
	t.Cleanup(transport.CloseIdleConnections)
	return s, transport
}

// The API answers the same over a socket and without one.
func TestAnswers(t *testing.T) {
	t.Parallel()
	const good = `{"user_id":"u"}`
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	path := func(method, path string) func(*http.Request) {
		return func(r *http.Request) { r.Method, r.URL.Path = method, path }
	}
	many := make([]string, 501)
	for i := range many {
		many[i] = fmt.Sprintf(`"p%d":1`, i)
	}
	for _, test := range []struct {
		name, body string
		edit       func(*http.Request)
		status     int
		code       string
	}{
		{"accepted", good, nil, 202, ""},
		{"charset", good, header("Content-Type", "application/json; charset=utf-8"), 202, ""},
		{"everything", `{"user_id":"u","metadata":{"a":null},"company":{"company_id":"c"},"x":1}`, nil, 202, ""},
		{"nulls", `{"user_id":"u","metadata":null,"company":null}`, nil, 202, ""},
		{"wrong key", good, header("Authorization", "Token other"), 401, "unauthorized"},
		{"no key", good, header("Authorization", "Token "), 401, "unauthorized"},
		{"bearer", good, header("Authorization", "Bearer key"), 401, "unauthorized"},
		{"elsewhere", good, path("POST", "/v1/track"), 404, "not_found"},
		{"wrong method", good, path("PUT", "/v1/identify"), 405, "method_not_allowed"},
		{"wrong type", good, header("Content-Type", "text/plain"), 415, "unsupported_media_type"},
		{"no version", good, header("X-API-Version", ""), 400, "missing_api_version"},
		{"large", good + strings.Repeat(" ", 1<<20), nil, 413, "too_large"},
		{"not JSON", "hello", nil, 400, "invalid_json"},
		{"half", `{"user_id":"u"`, nil, 400, "invalid_json"},
		{"two", good + good, nil, 400, "invalid_json"},
		{"array", "[]", nil, 400, "invalid_json"},
		{"name twice", `{"user_id":"u","user\u005fid":"u"}`, nil, 400, "invalid_json"},
		{"no user", `{}`, nil, 400, "missing_user_id"},
		{"numeric user", `{"user_id":1}`, nil, 400, "missing_user_id"},
		{"metadata string", `{"user_id":"u","metadata":"m"}`, nil, 400, "invalid_property"},
		{"nested", `{"user_id":"u","metadata":{"a":[]}}`, nil, 400, "invalid_property"},
		{"company without id", `{"user_id":"u","company":{"name":"c"}}`, nil, 400, "missing_company_id"},
		{"company string", `{"user_id":"u","company":"c"}`, nil, 400, "invalid_property"},
		{"numeric company", `{"user_id":"u","company":{"id":1}}`, nil, 400, "missing_company_id"},
		{"501 properties", `{"user_id":"u","metadata":{` + strings.Join(many, ",") + `}}`, nil, 400, "too_many_properties"},
		{"validate", "", path("GET", "/v1/validate"), 200, ""},
		{"validate a wrong key", "", func(r *http.Request) {
			path("GET", "/v1/validate")(r)
			header("Authorization", "Token other")(r)
		}, 401, "unauthorized"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, socket := start(t, userpilottest.Options{Key: "key"})
			for name, rt := range map[string]http.RoundTripper{"socket": socket, "memory": s.Transport()} {
				resp, body, err := identify(t, rt, s.URL(), test.body, test.edit)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if resp.StatusCode != test.status {
					t.Errorf("%s: answered %d, want %d: %s", name, resp.StatusCode, test.status, body)
				}
				if test.code != "" && !strings.Contains(body, `"error_code":"`+test.code+`"`) {
					t.Errorf("%s: answered %s, want the code %s", name, body, test.code)
				}
				if resp.Header.Get("X-Request-Id") == "" || resp.Header.Get("Date") == "" {
					t.Errorf("%s: header %v", name, resp.Header)
				}
			}
		})
	}
}

func TestAnyKey(t *testing.T) {
	t.Parallel()
	s := userpilottest.New(userpilottest.Options{})
	for key, want := range map[string]int{"Token a": 202, "Token b": 202, "Token NX-app": 401, "": 401} {
		resp, _, err := identify(t, s.Transport(), "", `{"user_id":"u"}`, func(r *http.Request) { r.Header.Set("Authorization", key) })
		if err != nil || resp.StatusCode != want {
			t.Errorf("key %q: %v %v, want %d", key, resp, err, want)
		}
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	s := userpilottest.New(userpilottest.Options{})
	for _, body := range []string{
		`{"user_id":"u","metadata":{"a":1.0,"b":2,"c":3},"company":{"id":"c1","name":"one","size":1}}`,
		`{"user_id":"u","metadata":{"b":null,"c":"x"}}`,
		`{"user_id":"u","company":{"company_id":"c1","size":null,"plan":"p"}}`,
		`{"user_id":"v","company":{"id":"c1"}}`,
		`{"user_id":"v","company":{"id":"c2","name":"two"}}`,
		`{"user_id":"w","metadata":{"a":{}}}`, // refused
	} {
		status(t, s, body)
	}
	for user, want := range map[string]string{
		"u": "{map[a:1.0 c:\"x\"] c1} true",
		"v": "{map[] c2} true",
		"w": "{map[] } false",
	} {
		profile, ok := s.Profile(user)
		if got := fmt.Sprintf("%s %v", profile, ok); got != want {
			t.Errorf("user %s: %s, want %s", user, got, want)
		}
	}
	for id, want := range map[string]string{
		"c1": `map[name:"one" plan:"p"] true`,
		"c2": `map[name:"two"] true`,
		"c3": "map[] false",
	} {
		company, ok := s.Company(id)
		if got := fmt.Sprintf("%s %v", company, ok); got != want {
			t.Errorf("company %s: %s, want %s", id, got, want)
		}
	}
	if stats := s.Stats(); stats.Users != 2 || stats.Companies != 2 || stats.Applied != 5 {
		t.Errorf("stats %+v", stats)
	}
	profile, _ := s.Profile("u")
	profile.Properties["a"] = nil
	if again, _ := s.Profile("u"); string(again.Properties["a"]) != "1.0" {
		t.Error("a profile that was given out is the server's own")
	}
}

// In fake time: three calls in any closed window of a minute, including refused ones.
func TestLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := userpilottest.New(userpilottest.Options{Limit: 3, RetryAfter: 1500 * time.Millisecond})
		for _, step := range []struct {
			wait time.Duration
			want int
		}{
			{0, 202},
			{20 * time.Second, 202},
			{20 * time.Second, 202}, // at 0, 20 and 40 seconds
			{20 * time.Second, 429}, // exactly a minute after the first
			{time.Nanosecond, 429},  // the refused one counts: 20, 40, 60
			{20*time.Second - time.Nanosecond, 429},
			{time.Minute + time.Nanosecond, 202},
		} {
			time.Sleep(step.wait)
			if got := status(t, s, `{"user_id":"u"}`); got != step.want {
				t.Errorf("after %v more: %d, want %d", step.wait, got, step.want)
			}
		}
		stats := s.Stats()
		if stats.MaxInWindow != 5 || stats.InWindow != 1 || stats.Calls != 7 ||
			!maps.Equal(stats.ByStatus, map[int]int{202: 4, 429: 3}) {
			t.Errorf("stats %+v", stats)
		}
		if took := stats.Last.Sub(stats.First); took != 140*time.Second+time.Nanosecond {
			t.Errorf("from the first call to the last %v", took)
		}
	})
}

func TestLimitRetryAfter(t *testing.T) {
	t.Parallel()
	s := userpilottest.New(userpilottest.Options{Limit: 1, RetryAfter: 1500 * time.Millisecond})
	status(t, s, `{"user_id":"u"}`)
	resp, _, err := identify(t, s.Transport(), "", `{"user_id":"u"}`, nil)
	if err != nil || resp.Header.Get("Retry-After") != "2" {
		t.Errorf("%v %v", resp, err)
	}
	other, _, err := identify(t, s.Transport(), "", `{"user_id":"u"}`, func(r *http.Request) {
		r.Header.Set("Authorization", "Token other")
	})
	if err != nil || other.StatusCode != 202 {
		t.Errorf("another key has a limit of its own: %v %v", other, err)
	}
}

func TestLatency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := userpilottest.New(userpilottest.Options{Latency: 3 * time.Second})
		began := time.Now()
		var calls sync.WaitGroup
		for i := range 10 {
			calls.Go(func() { status(t, s, fmt.Sprintf(`{"user_id":"u%d"}`, i)) })
		}
		calls.Wait()
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("ten calls at once took %v", took)
		}
	})
}

func TestCalls(t *testing.T) {
	t.Parallel()
	s := userpilottest.New(userpilottest.Options{KeepCalls: true, Faults: userpilottest.Rules{
		{Fault: userpilottest.Fault{Cut: true}, From: 2, To: 2},
		{Fault: userpilottest.Fault{CutAfterApply: true}, User: "lost"},
	}.Fault})
	for _, body := range []string{`{"user_id":"u"}`, `{"user_id":"u"}`, `{"user_id":"lost"}`, `{}`} {
		status(t, s, body)
	}
	var got []string
	for _, c := range s.Calls() {
		got = append(got, fmt.Sprintf("%d %s %s %d %v", c.Number, c.User, c.Body, c.Status, c.Applied))
	}
	want := []string{`1 u {"user_id":"u"} 202 true`, `2 u {"user_id":"u"} 0 false`, `3 lost {"user_id":"lost"} 0 true`, `4  {} 400 false`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("calls\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	s.Calls()[0].User = "changed"
	if s.Calls()[0].User != "u" {
		t.Error("the calls that were given out are the server's own")
	}
	if calls := userpilottest.New(userpilottest.Options{}).Calls(); len(calls) != 0 {
		t.Errorf("%d calls were kept unasked", len(calls))
	}
}

func TestStartTwiceOnOtherPorts(t *testing.T) {
	t.Parallel()
	a, _ := start(t, userpilottest.Options{})
	b, _ := start(t, userpilottest.Options{})
	if a.URL() == b.URL() {
		t.Errorf("both on %s", a.URL())
	}
	userpilottest.New(userpilottest.Options{}).Close() // never started
}
