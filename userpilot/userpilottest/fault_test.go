package userpilottest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

func always(f userpilottest.Fault) func(userpilottest.Request) userpilottest.Fault {
	return func(userpilottest.Request) userpilottest.Fault { return f }
}

// Each fault looks the same to a client over a socket and without one.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		fault   userpilottest.Fault
		status  int // 0: no answer
		body    string
		readErr bool // reading the body fails
		applied int
	}{
		{"none", userpilottest.Fault{}, 202, "", false, 1},
		{"status", userpilottest.Fault{Status: 503}, 503, "scripted_fault", false, 0},
		{"another success", userpilottest.Fault{Status: 200}, 200, "", false, 1},
		{"redirect", userpilottest.Fault{Status: 302}, 302, "scripted_fault", false, 0},
		{"retry after", userpilottest.Fault{RetryAfter: time.Second}, 429, "scripted_fault", false, 0},
		{"retry after with a status", userpilottest.Fault{Status: 503, RetryAfter: time.Second}, 503, "scripted_fault", false, 0},
		{"cut", userpilottest.Fault{Cut: true}, 0, "", false, 0},
		{"cut after apply", userpilottest.Fault{CutAfterApply: true}, 0, "", false, 1},
		{"HTML", userpilottest.Fault{HTML: true}, 502, "<h1>", false, 0},
		{"own body", userpilottest.Fault{Status: 422, Body: []byte("own")}, 422, "own", false, 0},
		{"instead", userpilottest.Fault{Instead: true}, 200, "", false, 0},
		{"instead, with a status", userpilottest.Fault{Status: 204, Instead: true}, 204, "", false, 0},
		{"instead, with a refusal", userpilottest.Fault{Status: 404, Instead: true}, 404, "scripted_fault", false, 0},
		{"a captive portal", userpilottest.Fault{HTML: true, Instead: true}, 200, "<h1>", false, 0},
		{"a page of the API's", userpilottest.Fault{HTML: true, Status: 200}, 200, "<h1>", false, 1},
		{"own body, accepted", userpilottest.Fault{Body: []byte("own")}, 202, "own", false, 1},
		{"own body, instead", userpilottest.Fault{Status: 202, Body: []byte("own"), Instead: true}, 202, "own", false, 0},
		{"no status of HTTP", userpilottest.Fault{Status: 999}, 999, "scripted_fault", false, 0},
		{"no body allowed", userpilottest.Fault{Status: 304, Body: []byte("own")}, 304, "", false, 0},
		{"own header", userpilottest.Fault{Status: 421, Header: http.Header{"X-Own": {"a"}}}, 421, "scripted_fault", false, 0},
		{"cut body", userpilottest.Fault{Status: 500, Body: []byte("12345678"), CutBody: true}, 500, "1234", true, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, socket := start(t, userpilottest.Options{Faults: always(test.fault)})
			for name, rt := range map[string]http.RoundTripper{"socket": socket, "memory": s.Transport()} {
				before := s.Stats().Applied
				resp, body, err := identify(t, rt, s.URL(), `{"user_id":"u"}`, nil)
				if applied := s.Stats().Applied - before; applied != test.applied {
					t.Errorf("%s: %d applied, want %d", name, applied, test.applied)
				}
				if test.status == 0 {
					if err == nil {
						t.Errorf("%s: answered %d", name, resp.StatusCode)
					}
					continue
				}
				if test.readErr {
					if !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("%s: %v, want a body that breaks off", name, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if resp.StatusCode != test.status || !strings.Contains(body, test.body) {
					t.Errorf("%s: answered %d %q", name, resp.StatusCode, body)
				}
				if got := resp.Header.Get("X-Own"); got != test.fault.Header.Get("X-Own") {
					t.Errorf("%s: X-Own %q", name, got)
				}
				if test.body == "" && body != "" {
					t.Errorf("%s: body %q", name, body)
				}
				if got := resp.Header.Get("Retry-After"); (got == "1") != (test.fault.RetryAfter > 0) {
					t.Errorf("%s: Retry-After %q", name, got)
				}
			}
		})
	}
}

// A fault's header takes the place of the stand-in's own.
func TestFaultHeader(t *testing.T) {
	t.Parallel()
	header := http.Header{
		"content-type": {"text/plain"}, "X-Request-Id": {"own"}, "Date": {"Fri, 02 Jan 2026 03:04:05 GMT"}, "Retry-After": {"1.5"}, "X-Two": {"a", "b"},
	}
	s, socket := start(t, userpilottest.Options{Faults: always(userpilottest.Fault{RetryAfter: time.Minute, Header: header})})
	for name, rt := range map[string]http.RoundTripper{"socket": socket, "memory": s.Transport()} {
		resp, _, err := identify(t, rt, s.URL(), `{"user_id":"u"}`, nil)
		if err != nil {
			t.Fatal(err)
		}
		for key, want := range header {
			if got := resp.Header.Values(key); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %s is %q, want %q", name, key, got, want)
			}
		}
	}
}

// The API's own refusals take precedence over a fault's answer.
func TestFaultDoesNotExcuse(t *testing.T) {
	t.Parallel()
	s := userpilottest.New(userpilottest.Options{Limit: 2, Faults: always(userpilottest.Fault{Status: 200})})
	for i, want := range []int{400, 200, 429} {
		if got := status(t, s, []string{`{}`, `{"user_id":"u"}`, `{"user_id":"u"}`}[i]); got != want {
			t.Errorf("call %d: %d, want %d", i+1, got, want)
		}
	}
}

func TestSetFaults(t *testing.T) {
	t.Parallel()
	s := userpilottest.New(userpilottest.Options{})
	s.SetFaults(always(userpilottest.Fault{Status: 500}))
	if got := status(t, s, `{"user_id":"u"}`); got != 500 {
		t.Errorf("with faults: %d", got)
	}
	s.SetFaults(nil)
	if got := status(t, s, `{"user_id":"u"}`); got != 202 {
		t.Errorf("without: %d", got)
	}
}

func TestFaultDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := userpilottest.New(userpilottest.Options{Latency: time.Second, Faults: always(userpilottest.Fault{Delay: 4 * time.Second})})
		began := time.Now()
		if got := status(t, s, `{"user_id":"u"}`); got != 202 || time.Since(began) != 5*time.Second {
			t.Errorf("answered %d after %v", got, time.Since(began))
		}
		cause := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, cause)
		defer cancel()
		began = time.Now()
		_, _, err := identify(t, s.Transport(), "", `{"user_id":"v"}`, func(r *http.Request) { *r = *r.WithContext(ctx) })
		if !errors.Is(err, cause) || time.Since(began) != 2*time.Second {
			t.Errorf("given up: %v after %v", err, time.Since(began))
		}
		if _, ok := s.Profile("v"); ok {
			t.Error("applied after the client had gone")
		}
	})
}

func TestTrickle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := userpilottest.New(userpilottest.Options{Faults: always(userpilottest.Fault{Body: []byte("ab"), Trickle: time.Minute})})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute+time.Second)
		defer cancel()
		_, body, err := identify(t, s.Transport(), "", `{"user_id":"u"}`, func(r *http.Request) { *r = *r.WithContext(ctx) })
		if body != "ab        " || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read %q, %v", body, err)
		}
	})
}

func TestParseFault(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		rule userpilottest.Rule
		err  string
	}{
		{"status=500,every=10", userpilottest.Rule{Fault: userpilottest.Fault{Status: 500}, Every: 10}, ""},
		{"status=429, retry-after=2s ,from=100,to=120", userpilottest.Rule{Fault: userpilottest.Fault{Status: 429, RetryAfter: 2 * time.Second}, From: 100, To: 120}, ""},
		{"delay=3s,user=abc", userpilottest.Rule{Fault: userpilottest.Fault{Delay: 3 * time.Second}, User: "abc"}, ""},
		{"cut,p=0.01,seed=7", userpilottest.Rule{Fault: userpilottest.Fault{Cut: true}, P: 0.01, Seed: 7}, ""},
		{"cut-after-apply,to=5", userpilottest.Rule{Fault: userpilottest.Fault{CutAfterApply: true}, To: 5}, ""},
		{"html,cut-body", userpilottest.Rule{Fault: userpilottest.Fault{HTML: true, CutBody: true}}, ""},
		{"endless", userpilottest.Rule{Fault: userpilottest.Fault{Endless: true}}, ""},
		{"trickle=100ms", userpilottest.Rule{Fault: userpilottest.Fault{Trickle: 100 * time.Millisecond}}, ""},

		{"instead,html,user=abc", userpilottest.Rule{Fault: userpilottest.Fault{Instead: true, HTML: true}, User: "abc"}, ""},
		{"status=999,body={\"error\":\"a = b\"}", userpilottest.Rule{Fault: userpilottest.Fault{Status: 999, Body: []byte(`{"error":"a = b"}`)}}, ""},
		{"body=", userpilottest.Rule{Fault: userpilottest.Fault{Body: []byte{}}}, ""},
		{"header=x-one: a:b, header=X-One:c,header=X-Two:", userpilottest.Rule{Fault: userpilottest.Fault{Header: http.Header{"X-One": {"a:b", "c"}, "X-Two": {""}}}}, ""},

		{"", userpilottest.Rule{}, `fault: "" is not a field; the fields are `},
		{"stats=500", userpilottest.Rule{}, `fault: "stats" is not a field; the fields are `},
		{"every=10", userpilottest.Rule{}, "fault: has conditions, but no fault"},
		{"status", userpilottest.Rule{}, `fault: "status" must be a whole number from 200 to 999`},
		{"status=hidden", userpilottest.Rule{}, `fault: "status" must be a whole number from 200 to 999`},
		{"status=1000", userpilottest.Rule{}, `fault: "status" must be a whole number from 200 to 999`},
		{"status=500,status=501", userpilottest.Rule{}, `fault: "status" appears twice`},
		{"cut=yes", userpilottest.Rule{}, `fault: "cut" takes no value`},
		{"cut,cut-after-apply", userpilottest.Rule{}, `fault: "cut" and "cut-after-apply" exclude each other`},
		{"cut,every=0", userpilottest.Rule{}, `fault: "every" must be a whole number from 1`},
		{"cut,from=5,to=4", userpilottest.Rule{}, `fault: "to" is before "from"`},
		{"cut,p=0", userpilottest.Rule{}, `fault: "p" must be above 0 and at most 1`},
		{"cut,p=NaN", userpilottest.Rule{}, `fault: "p" must be above 0 and at most 1`},
		{"cut,seed=-1", userpilottest.Rule{}, `fault: "seed" must be a whole number from 0`},
		{"cut,user=", userpilottest.Rule{}, `fault: "user" is empty`},
		{"instead=yes", userpilottest.Rule{}, `fault: "instead" takes no value`},
		{"instead,cut-after-apply", userpilottest.Rule{}, `fault: "instead" and "cut-after-apply" exclude each other`},
		{"body", userpilottest.Rule{}, `fault: "body" takes a text`},
		{"header", userpilottest.Rule{}, `fault: "header" must be a name and a text such as Content-Type: text/plain`},
		{"header=X hidden: a", userpilottest.Rule{}, `fault: "header" must be a name and a text`},
		{"header=X: hidden\r\nY: a", userpilottest.Rule{}, `fault: "header" must be a name and a text`},
		{"delay=3", userpilottest.Rule{}, `fault: "delay" must be a positive duration such as 500ms`},
		{"delay=-3s", userpilottest.Rule{}, `fault: "delay" must be a positive duration such as 500ms`},
	} {
		t.Run(test.text, func(t *testing.T) {
			t.Parallel()
			rule, err := userpilottest.ParseFault(test.text)
			if err == nil && test.err != "" || err != nil && (test.err == "" || !strings.HasPrefix(err.Error(), test.err)) {
				t.Errorf("error %v, want %s", err, test.err)
			}
			if got, want := fmt.Sprintf("%+v", rule), fmt.Sprintf("%+v", test.rule); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	var rules userpilottest.Rules
	for _, text := range []string{"status=401,user=u", "status=402,every=4", "status=403,from=6,to=7"} {
		rule, err := userpilottest.ParseFault(text)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, rule)
	}
	var got []int
	for number := 1; number <= 8; number++ {
		got = append(got, rules.Fault(userpilottest.Request{Number: number}).Status)
	}
	if want := "[0 0 0 402 0 403 403 402]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if got := rules.Fault(userpilottest.Request{Number: 4, User: "u"}).Status; got != 401 {
		t.Errorf("the first rule that matches decides, got %d", got)
	}
}

// The same seed selects the same calls, another seed selects others, and about as many as P says.
func TestRuleProbability(t *testing.T) {
	t.Parallel()
	pick := func(seed uint64) (numbers []int) {
		rule := userpilottest.Rule{P: 0.1, Seed: seed}
		for number := 1; number <= 10_000; number++ {
			if rule.Matches(userpilottest.Request{Number: number}) {
				numbers = append(numbers, number)
			}
		}
		return numbers
	}
	one, again, other := pick(1), pick(1), pick(2)
	if fmt.Sprint(one) != fmt.Sprint(again) || fmt.Sprint(one) == fmt.Sprint(other) {
		t.Error("the seed does not decide")
	}
	if n := len(one); n < 900 || n > 1100 {
		t.Errorf("%d of 10000 with a probability of 0.1", n)
	}
	if n := len(other); n < 900 || n > 1100 {
		t.Errorf("%d of 10000 with a probability of 0.1", n)
	}
}

func FuzzParseFault(f *testing.F) {
	f.Add("status=500,every=10")
	f.Add("cut,p=0.01,seed=7")
	f.Add("delay=1h,user=\xff")
	f.Fuzz(func(t *testing.T, text string) {
		rule, err := userpilottest.ParseFault(text)
		if err != nil && !reflect.ValueOf(rule).IsZero() {
			t.Error("half a rule with its error")
		}
		rule.Matches(userpilottest.Request{Number: 1})
	})
}

func ExampleParseFault() {
	rule, err := userpilottest.ParseFault("status=503,every=2")
	if err != nil {
		fmt.Println(err)
		return
	}
	rules := userpilottest.Rules{rule}
	for number := range 4 {
		fmt.Print(rules.Fault(userpilottest.Request{Number: number + 1}).Status, " ")
	}
	// Output: 0 503 0 503
}
