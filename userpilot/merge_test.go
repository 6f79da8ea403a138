package userpilot_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
)

func parse(t testing.TB, bodies ...string) []userpilot.Event {
	t.Helper()
	events := make([]userpilot.Event, len(bodies))
	for i, body := range bodies {
		event, err := userpilot.Parse([]byte(body))
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		events[i] = event
	}
	return events
}

func TestMerge(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		bodies []string
		n      int
		body   string // "" if it is the first event's
	}{
		{"two", []string{`{"user_id":"u","metadata":{"a":1,"b":2}}`, `{"user_id":"u","metadata":{"c":3}}`},
			2, `{"user_id":"u","metadata":{"a":1,"b":2,"c":3}}`},
		{"the newest wins and stands last", []string{`{"user_id":"u","metadata":{"a":1,"b":2}}`, `{"user_id":"u","metadata":{"a":3}}`},
			2, `{"user_id":"u","metadata":{"b":2,"a":3}}`},
		{"null is a value", []string{`{"user_id":"u","metadata":{"a":1}}`, `{"user_id":"u","metadata":{"a":null}}`},
			2, `{"user_id":"u","metadata":{"a":null}}`},
		{"values as written", []string{`{"user_id":"u","metadata":{"a":1.0,"b":-0,"c":1e400}}`, `{"user_id":"u","metadata":{ "d" : "\u0041\/" }}`},
			2, `{"user_id":"u","metadata":{"a":1.0,"b":-0,"c":1e400,"d":"\u0041\/"}}`},
		{"names equal when unescaped", []string{`{"user_id":"u","metadata":{"plan":1}}`, `{"user_id":"\u0075","metadata":{"pl\u0061n":2}}`},
			2, `{"user_id":"u","metadata":{"pl\u0061n":2}}`},
		{"names of other case", []string{`{"user_id":"u","metadata":{"a":1}}`, `{"user_id":"u","metadata":{"A":2}}`, `{"user_id":"u","metadata":{"a":3}}`},
			3, `{"user_id":"u","metadata":{"A":2,"a":3}}`},
		{"nothing but users", []string{`{"user_id":"u"}`, `{"user_id":"u"}`, `{"user_id":"u"}`},
			3, `{"user_id":"u"}`},
		{"empty objects", []string{`{"user_id":"u","metadata":{}}`, `{"user_id":"u"}`},
			2, `{"user_id":"u","metadata":{}}`},
		{"another user", []string{`{"user_id":"u"}`, `{"user_id":"u"}`, `{"user_id":"v"}`},
			2, `{"user_id":"u"}`},

		{"company of the first", []string{`{"user_id":"u","company":{"id":"c","n":1}}`, `{"user_id":"u","metadata":{"a":1}}`},
			2, `{"user_id":"u","metadata":{"a":1},"company":{"id":"c","n":1}}`},
		{"company of the last", []string{`{"user_id":"u","metadata":{"a":1}}`, `{"user_id":"u","company":{"company_id":"c"}}`},
			2, `{"user_id":"u","metadata":{"a":1},"company":{"company_id":"c"}}`},
		{"same company", []string{`{"user_id":"u","company":{"id":"c","n":1}}`, `{"user_id":"u","company":{"n":null,"\u0069d":"\u0063"}}`},
			2, `{"user_id":"u","company":{"n":null,"\u0069d":"\u0063"}}`},
		{"another company", []string{`{"user_id":"u","company":{"id":"c"}}`, `{"user_id":"u"}`, `{"user_id":"u","company":{"id":"d"}}`},
			2, `{"user_id":"u","company":{"id":"c"}}`},
		{"the company comes second", []string{`{"user_id":"u"}`, `{"user_id":"u","company":{"id":"c"}}`, `{"user_id":"u"}`, `{"user_id":"u","company":{"id":"d"}}`},
			3, `{"user_id":"u","company":{"id":"c"}}`},
		{"another spelling", []string{`{"user_id":"u","company":{"id":"c"}}`, `{"user_id":"u","company":{"company_id":"c"}}`}, 1, ""},

		{"alone", []string{`{"user_id":"u","metadata":{"a":1.0}}`}, 1, ""},
		{"first not mergeable", []string{` {"user_id":"u","x":1}`, `{"user_id":"u"}`}, 1, ""},
		{"first nested", []string{`{"user_id":"u","metadata":{"a":[]}}`, `{"user_id":"u"}`}, 1, ""},
		{"unknown member", []string{`{"user_id":"u"}`, `{"user_id":"u","x":1}`}, 1, ""},
		{"metadata null", []string{`{"user_id":"u"}`, `{"user_id":"u","metadata":null}`}, 1, ""},
		{"metadata twice", []string{`{"user_id":"u"}`, `{"user_id":"u","metadata":{},"metadata":{}}`}, 1, ""},
		{"property twice", []string{`{"user_id":"u"}`, `{"user_id":"u","metadata":{"a":1,"\u0061":2}}`}, 1, ""},
		{"nested object", []string{`{"user_id":"u"}`, `{"user_id":"u","metadata":{"a":{}}}`}, 1, ""},
		{"nested array", []string{`{"user_id":"u"}`, `{"user_id":"u","company":{"id":"c","a":[1]}}`}, 1, ""},
		{"company null", []string{`{"user_id":"u"}`, `{"user_id":"u","company":null}`}, 1, ""},
		{"company twice", []string{`{"user_id":"u"}`, `{"user_id":"u","company":{"id":"c"},"company":{"id":"c"}}`}, 1, ""},
		{"both ids", []string{`{"user_id":"u"}`, `{"user_id":"u","company":{"id":"c","company_id":"c"}}`}, 1, ""},
		{"id twice", []string{`{"user_id":"u"}`, `{"user_id":"u","company":{"id":"c","id":"c"}}`}, 1, ""},
		{"numeric company id", []string{`{"user_id":"u"}`, `{"user_id":"u","company":{"id":7}}`}, 1, ""},
		{"stops after two", []string{`{"user_id":"u","metadata":{"a":1}}`, `{"user_id":"u","metadata":{"a":2}}`, `{"user_id":"u","metadata":{"a":3,"b":{}}}`},
			2, `{"user_id":"u","metadata":{"a":2}}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			events := parse(t, test.bodies...)
			body, n := userpilot.Merge(events)
			if n != test.n {
				t.Fatalf("merged %d events, want %d: %s", n, test.n, body)
			}
			want := test.body
			if want == "" {
				want = test.bodies[0]
			}
			if string(body) != want {
				t.Errorf("got  %s\nwant %s", body, want)
			}
			if n == 1 && &body[0] != &events[0].Body()[0] {
				t.Error("a single event was copied")
			}
		})
	}
}

func TestMergeNothing(t *testing.T) {
	t.Parallel()
	if body, n := userpilot.Merge(nil); body != nil || n != 0 {
		t.Errorf("of no events: %q, %d", body, n)
	}
	if body, n := userpilot.Merge(make([]userpilot.Event, 2)); body != nil || n != 1 {
		t.Errorf("of zero events: %q, %d", body, n)
	}
}

// An event that Parse refused must not reach Merge; if it does, it is sent alone.
func TestMergeInvalid(t *testing.T) {
	t.Parallel()
	bad, err := userpilot.Parse([]byte(`{"user_id":"u","company":{}}`))
	if err == nil {
		t.Fatal("valid")
	}
	if _, n := userpilot.Merge([]userpilot.Event{bad, bad}); n != 1 {
		t.Errorf("merged %d invalid events", n)
	}
}

func TestMergeProperties(t *testing.T) {
	t.Parallel()
	object := func(from, to int) string {
		var members []string
		for i := from; i < to; i++ {
			members = append(members, fmt.Sprintf(`"p%d":%d`, i, i))
		}
		return "{" + strings.Join(members, ",") + "}"
	}
	body := func(from, to int) string { return `{"user_id":"u","metadata":` + object(from, to) + `}` }
	for _, test := range []struct {
		name   string
		bodies []string
		n      int
	}{
		{"500", []string{body(0, 300), body(100, 500)}, 2},
		{"501", []string{body(0, 300), body(100, 501)}, 1},
		{"501 at once", []string{body(0, 501), body(0, 1)}, 1},
		{"501 with the third", []string{body(0, 300), body(300, 500), body(500, 501)}, 2},
		{"as many as are there already", []string{body(0, 500), body(0, 500), body(0, 500)}, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if _, n := userpilot.Merge(parse(t, test.bodies...)); n != test.n {
				t.Errorf("merged %d, want %d", n, test.n)
			}
		})
	}
}

func TestMergeSize(t *testing.T) {
	t.Parallel()
	body := func(name string, size int) string {
		return `{"user_id":"u","metadata":{"` + name + `":"` + strings.Repeat("x", size) + `"}}`
	}
	third := userpilot.MaxEventBytes * 2 / 5
	merged, n := userpilot.Merge(parse(t, body("a", third), body("b", third), body("c", third)))
	if n != 2 || len(merged) > userpilot.MaxEventBytes {
		t.Errorf("merged %d different properties into %d bytes", n, len(merged))
	}
	if _, n := userpilot.Merge(parse(t, body("a", third), body("a", third), body("a", third))); n != 3 {
		t.Errorf("merged %d values of one property, want 3", n)
	}
	full := userpilot.MaxEventBytes - len(body("a", 0))
	if _, n := userpilot.Merge(parse(t, body("a", full), body("a", 1), body("b", 1))); n != 3 {
		t.Errorf("merged %d, want 3: the full event's value is replaced", n)
	}
}

// checkParsed checks what must hold for every valid event.
func checkParsed(t *testing.T, event userpilot.Event) {
	_ = event.CheckStrict()
	body, n := userpilot.Merge([]userpilot.Event{event, event})
	if !json.Valid(body) {
		t.Fatalf("merged into invalid JSON: %q", body)
	}
	again, err := userpilot.Parse(body)
	if err != nil || again.UserID() != event.UserID() {
		t.Fatalf("merged into another: %q: %v", body, err)
	}
	if n == 1 && !bytes.Equal(body, event.Body()) {
		t.Fatal("a single event was changed")
	}
	if n == 2 {
		if _, n := userpilot.Merge([]userpilot.Event{again, event}); n != 2 {
			t.Fatalf("what was merged does not merge: %q", body)
		}
	}
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte(`{"user_id":"u","metadata":{"a":1}}`), []byte(`{"user_id":"u","metadata":{"\u0061":null}}`))
	f.Add([]byte(`{"user_id":"u","company":{"id":"c"}}`), []byte(`{"user_id":"\u0075","company":{"\u0069d":"c","x":1.0}}`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		a, errA := userpilot.Parse(first)
		b, errB := userpilot.Parse(second)
		body, n := userpilot.Merge([]userpilot.Event{a, b})
		if errA != nil || errB != nil {
			if n != 1 {
				t.Fatal("merged an invalid event")
			}
			return
		}
		if err := sameWorld([][]byte{first, second}, append([][]byte{body}, [][]byte{second}[n-1:]...)); err != nil {
			t.Fatal(err)
		}
		merged, err := userpilot.Parse(body)
		if err != nil || merged.UserID() != a.UserID() {
			t.Fatalf("merged into %q: %v", body, err)
		}
	})
}
