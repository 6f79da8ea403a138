package oracle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// history feeds an oracle by hand.
type history struct {
	*Oracle
	calls   []userpilottest.Call
	letters []*jetstream.RawStreamMsg
	bodies  [][]byte // of ann's events
}

// publish makes n more events of ann. Those with the numbers in deadly must die.
func (h *history) publish(n int, deadly ...int) {
	for range n {
		e := Event{}
		if slices.Contains(deadly, h.Events("ann")+1) {
			e = Event{More: `,"bad":true`, Dies: deadletter.Rejected}
		}
		h.bodies = append(h.bodies, h.Next("ann", e))
	}
}

// mixed makes events of ann: B is backfill, and L is live. Each sets a property that all share.
func (h *history) mixed(classes string) {
	for n, c := range classes {
		h.bodies = append(h.bodies, h.Next("ann", Event{Backfill: c == 'B', More: fmt.Sprintf(`,"p":%d`, n+1)}))
	}
}

// rest makes a call with backfill of ann that newer live events have left nothing but its marks.
func (h *history) rest(status int, numbers ...int) {
	var marks []string
	for _, n := range numbers {
		marks = append(marks, fmt.Sprintf(`"e%d":true`, n))
	}
	h.receive(status, fmt.Sprintf(`{"user_id":"ann","metadata":{%s}}`, strings.Join(marks, ",")))
}

// companies makes backfill that names the company "a", and a live event that names this one.
func (h *history) companies(live string) {
	h.bodies = append(h.bodies,
		h.Next("ann", Event{Backfill: true, Company: `{"id":"a","seats":1,"only":1}`}), h.Next("ann", Event{Company: live}))
	h.receive(202, string(h.bodies[1]))
}

// call makes a call with these events of ann, and the API's answer; 0 cuts the connection.
func (h *history) call(status int, numbers ...int) {
	var marks []string
	for _, n := range numbers {
		mark := fmt.Sprintf(`"n":%d,"e%d":true`, n, n)
		if u := h.users["ann"]; n > 0 && n <= len(u.events) {
			mark += u.events[n-1].More
		}
		marks = append(marks, mark)
	}
	h.receive(status, fmt.Sprintf(`{"user_id":"ann","metadata":{%s}}`, strings.Join(marks, ",")))
}

func (h *history) receive(status int, body string) {
	var user string
	if i, err := Parse([]byte(body)); err == nil {
		user = i.User
	}
	h.calls = append(h.calls, userpilottest.Call{
		Request: userpilottest.Request{User: user, Body: []byte(body), Time: time.Unix(int64(len(h.calls)), 0)},
		Status:  status, Applied: status == http.StatusAccepted,
	})
}

// letter adds a dead letter.
func (h *history) letter(body []byte, reason, status, sequence string) {
	h.letters = append(h.letters, &jetstream.RawStreamMsg{Data: body, Header: nats.Header{
		"Dead-Reason": {reason}, "Dead-Status": {status}, "Dead-Sequence": {sequence},
	}})
}

// mayBringBack lets the server be killed after this many calls.
func (h *history) mayBringBack(after int64) {
	h.BroughtBack = func(from, to time.Time) bool { return from.Unix() < after && to.Unix() >= after }
}

// histories are cases of one user's history.
type histories map[string]struct {
	want    string
	history func(*history)
}

func (all histories) judge(t *testing.T) {
	t.Parallel()
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &history{Oracle: New()}
			c.history(h)
			expect(t, h.Verdict(h.calls, h.letters), c.want)
		})
	}
}

// A wrong history gives one finding, and its correct neighbor none.
func TestVerdict(t *testing.T) {
	histories{
		"all is well":                       {"", func(h *history) { h.publish(3); h.call(202, 1); h.call(202, 2, 3) }},
		"taken back":                        {"taken back from event 2 to 1", func(h *history) { h.publish(2); h.call(202, 1, 2); h.call(202, 1) }},
		"taken back behind an unknown call": {"taken back from event 2 to 1", func(h *history) { h.publish(2); h.call(0, 1, 2); h.call(202, 1) }},
		"taken back behind a failed call":   {"taken back from event 2 to 1", func(h *history) { h.publish(2); h.call(500, 1, 2); h.call(202, 1) }},
		"taken back behind a time-out":      {"taken back from event 2 to 1", func(h *history) { h.publish(2); h.call(408, 1, 2); h.call(202, 1) }},
		"taken back by a call that fails":   {"taken back from event 2 to 1", func(h *history) { h.publish(2); h.call(202, 1, 2); h.call(429, 1) }},
		"smaller after a refusal":           {"", func(h *history) { h.publish(2); h.call(429, 1, 2); h.call(202, 1); h.call(202, 2) }},
		"smaller after a redirection":       {"", func(h *history) { h.publish(2); h.call(302, 1, 2); h.call(202, 1); h.call(202, 2) }},
		"smaller behind a network login":    {"", func(h *history) { h.publish(2); h.call(511, 1, 2); h.call(202, 1); h.call(202, 2) }},
		"repeated":                          {"", func(h *history) { h.publish(2); h.call(202, 1); h.call(202, 1); h.call(0, 1, 2); h.call(202, 1, 2) }},
		"an older event is repeated":        {"event 1 was repeated", func(h *history) { h.publish(3); h.call(202, 1); h.call(202, 2); h.call(0, 1, 2, 3) }},
		"brought back": {"", func(h *history) {
			h.mayBringBack(2)
			h.publish(3)
			h.call(202, 1)
			h.call(202, 2)
			h.call(202, 1, 2, 3)
		}},
		"brought back without the newest": {"taken back", func(h *history) { h.mayBringBack(2); h.publish(2); h.call(202, 1); h.call(202, 2); h.call(202, 1) }},
		"brought back, refused, and again": {"", func(h *history) {
			h.mayBringBack(2)
			h.publish(2)
			h.call(202, 1)
			h.call(202, 2)
			h.call(429, 1, 2)
			h.call(202, 1, 2)
		}},
		"brought back at another time": {"was repeated", func(h *history) {
			h.mayBringBack(1)
			h.publish(3)
			h.call(202, 1)
			h.call(202, 2)
			h.call(202, 1, 2, 3)
		}},
		"brought back, and then taken back": {"taken back", func(h *history) {
			h.mayBringBack(2)
			h.publish(2)
			h.call(202, 1)
			h.call(202, 2)
			h.call(202, 1, 2)
			h.call(202, 1)
		}},
		"skipped":                 {"event 1 was skipped: the call begins with 2", func(h *history) { h.publish(2); h.call(202, 2) }},
		"skipped after a failure": {"event 1 was skipped", func(h *history) { h.publish(2); h.call(500, 1); h.call(202, 2) }},
		"a mark has another value": {"event 1 was skipped", func(h *history) {
			h.publish(2)
			h.receive(202, `{"user_id":"ann","metadata":{"n":2,"e1":1,"e2":true}}`)
		}},
		"skipped within a call":       {"event 2 was skipped within", func(h *history) { h.publish(3); h.call(202, 1, 3) }},
		"invented":                    {"only those up to 1", func(h *history) { h.publish(1); h.call(202, 1, 2) }},
		"invented before the first":   {"only those up to 1", func(h *history) { h.publish(1); h.call(202, 0, 1) }},
		"for a user who was invented": {"a call for an unknown user", func(h *history) { h.receive(500, `{"user_id":"eve","metadata":{"n":1,"e1":true}}`) }},
		"without events":              {"without events", func(h *history) { h.publish(1); h.call(202) }},
		"is no JSON":                  {"a call's body", func(h *history) { h.receive(202, "no") }},
		"carries older values": {`sets n to "1", want "2" of event 2`, func(h *history) {
			h.publish(2)
			h.receive(202, `{"user_id":"ann","metadata":{"n":1,"e1":true,"e2":true}}`)
		}},
		"lost":                      {"event 2 is not delivered", func(h *history) { h.publish(2); h.call(202, 1) }},
		"lost, for the call failed": {"event 1 is not delivered", func(h *history) { h.publish(1); h.call(500, 1) }},
		"lost with all":             {"event 1 is not delivered", func(h *history) { h.publish(1) }},
		"removed":                   {"", func(h *history) { h.publish(3); h.Removed("ann", 2); h.call(202, 1, 3) }},
		"a property too many": {`sets plan to "1", and none of its events does`, func(h *history) {
			h.publish(1)
			h.receive(202, `{"user_id":"ann","metadata":{"n":1,"e1":true,"plan":1}}`)
		}},
		"a company too many": {`sets its company to "\"c\"", and none`, func(h *history) {
			h.publish(1)
			h.receive(202, `{"user_id":"ann","metadata":{"n":1,"e1":true},"company":{"id":"c"}}`)
		}},
		"a company's property is wrong": {`seats to "1", want "2" of event 2`, func(h *history) {
			first, second := h.Next("ann", Event{Varied: true}), h.Next("ann", Event{Varied: true})
			h.receive(202, string(first))
			h.receive(202, strings.Replace(string(second), `"seats":2`, `"seats":1`, 1))
		}},
		"a property is not removed": {`does not set plan to "null" of event 2`, func(h *history) {
			h.receive(202, string(h.Next("ann", Event{More: `,"plan":"pro"`})))
			h.Next("ann", Event{More: `,"plan":null`})
			h.receive(202, `{"user_id":"ann","metadata":{"n":2,"e2":true}}`)
		}},
		"the dead are skipped":               {"", func(h *history) { h.publish(4, 1, 3); h.call(202, 2); h.call(202, 4); h.dies(1, 3) }},
		"the dead are skipped within a call": {"", func(h *history) { h.publish(3, 2); h.call(202, 1, 3); h.dies(2) }},
		"halved until the guilty is alone": {"", func(h *history) {
			h.publish(3, 3)
			h.call(422, 1, 2, 3)
			h.call(202, 1)
			h.call(202, 2)
			h.call(422, 3)
			h.dies(3)
		}},
		"smaller after the guilty has failed": {"", func(h *history) { h.publish(3, 3); h.call(500, 1, 2, 3); h.call(202, 1, 2); h.dies(3) }},
		"takes effect and dies":               {"event 2 took effect", func(h *history) { h.publish(2, 2); h.call(202, 1, 2); h.dies(2) }},
		"not dead":                            {"event 1: 0 dead letters, want 1", func(h *history) { h.publish(1, 1) }},
		"dead without cause":                  {"event 1: an unexpected dead letter (retries_exhausted", func(h *history) { h.publish(1); h.call(202, 1); h.letter(h.bodies[0], "retries_exhausted", "503", "1") }},
		"dead for the wrong reason":           {"want rejected", func(h *history) { h.publish(1, 1); h.letter(h.bodies[0], "retries_exhausted", "422", "1") }},
		"dead for another status":             {"status 401", func(h *history) { h.publish(1, 1); h.letter(h.bodies[0], "rejected", "401", "1") }},
		"dead with another body": {"an unexpected dead letter", func(h *history) {
			h.publish(1, 1)
			h.dies(1)
			h.letter([]byte(`{"user_id":"ann"}`), "rejected", "422", "2")
		}},
		"dead twice": {"one dead letter too many, of event 9", func(h *history) { h.publish(1, 1); h.dies(1); h.letter(h.bodies[0], "rejected", "422", "9") }},
		"stored twice, dead twice": {"", func(h *history) {
			h.publish(1, 1)
			h.MayDie(h.bodies[0])
			h.dies(1)
			h.letter(h.bodies[0], "rejected", "422", "9")
		}},
		"stored twice, one of them dead":  {"", func(h *history) { h.publish(1, 1); h.MayDie(h.bodies[0]); h.dies(1) }},
		"stored twice, none dead":         {"0 dead letters", func(h *history) { h.publish(1, 1); h.MayDie(h.bodies[0]) }},
		"stored twice, one of them twice": {"one dead letter too many", func(h *history) { h.publish(1, 1); h.MayDie(h.bodies[0]); h.dies(1, 1) }},
		"nonsense":                        {"", func(h *history) { h.letter(h.MustDie([]byte("no"), deadletter.Invalid), "invalid", "", "1") }},
		"nonsense that lives":             {"0 dead letters, want 1", func(h *history) { h.MustDie([]byte("no"), deadletter.Invalid) }},
		"nonsense, one of two dead": {"1 dead letters, want 2", func(h *history) {
			h.MustDie([]byte("no"), deadletter.Invalid)
			h.letter(h.MustDie([]byte("no"), deadletter.Invalid), "invalid", "", "1")
		}},
		"a call of nonsense":                  {"a call for an unknown user", func(h *history) { h.nonsense(deadletter.Invalid, 400) }},
		"a call about a stranger's event":     {"", func(h *history) { h.nonsense(deadletter.Rejected, 422) }},
		"a stranger's event that took effect": {"a call for an unknown user", func(h *history) { h.nonsense(deadletter.Rejected, 202) }},
	}.judge(t)
}

// Live events and backfill of one user.
func TestVerdictOfClasses(t *testing.T) {
	histories{
		"in the order of publication": {"", func(h *history) { h.mixed("BLBL"); h.call(202, 1, 2); h.call(202, 3); h.call(202, 4) }},
		"live first":                  {"", func(h *history) { h.mixed("BBL"); h.call(202, 3); h.rest(202, 1, 2) }},
		"live first, one by one":      {"", func(h *history) { h.mixed("BBL"); h.call(202, 3); h.rest(202, 1); h.rest(202, 2) }},
		"live first, and newer backfill": {"", func(h *history) {
			h.mixed("BLB")
			h.call(202, 2)
			h.rest(202, 1)
			h.call(202, 3)
		}},
		"both merged":                       {"", func(h *history) { h.mixed("BBL"); h.call(202, 1, 2, 3) }},
		"between two live events":           {"", func(h *history) { h.mixed("BLBL"); h.call(202, 2, 4); h.rest(202, 1, 3) }},
		"repeated after a newer live event": {"", func(h *history) { h.mixed("BL"); h.call(202, 1); h.call(202, 2); h.rest(202, 1) }},
		"overwrites newer properties":       {"takes n back from event 2 to 1", func(h *history) { h.mixed("BL"); h.call(202, 2); h.call(202, 1) }},
		"overwrites behind an unknown call": {"takes n back from event 2 to 1", func(h *history) { h.mixed("BL"); h.call(0, 2); h.call(202, 1) }},
		"overwrites, though refused":        {"takes n back from event 2 to 1", func(h *history) { h.mixed("BL"); h.call(202, 2); h.call(429, 1) }},
		"the live event was refused":        {"", func(h *history) { h.mixed("BL"); h.call(429, 2); h.call(202, 1); h.call(202, 2) }},
		"overwrites one property": {"takes p back from event 2 to 1", func(h *history) {
			h.mixed("BL")
			h.call(202, 2)
			h.receive(202, `{"user_id":"ann","metadata":{"p":1,"e1":true}}`)
		}},
		"sets less than is left":            {`does not set p to "1" of event 1`, func(h *history) { h.mixed("BL"); h.receive(202, `{"user_id":"ann","metadata":{"n":1,"e1":true}}`) }},
		"a live event sets less":            {`does not set p to "2" of event 2`, func(h *history) { h.mixed("BL"); h.receive(202, `{"user_id":"ann","metadata":{"n":2,"e2":true}}`) }},
		"backfill before an older live one": {"event 2, backfill, is called before the older live event 1", func(h *history) { h.mixed("LB"); h.call(202, 2) }},
		"merged without an older live one":  {"event 3, backfill, is called before the older live event 2", func(h *history) { h.mixed("BLB"); h.call(202, 1, 3) }},
		"backfill is taken back":            {"taken back from event 2 to 1", func(h *history) { h.mixed("BB"); h.call(202, 1, 2); h.call(202, 1) }},
		"live events are taken back":        {"taken back from event 3 to 1", func(h *history) { h.mixed("LBL"); h.call(202, 1); h.call(202, 3); h.call(202, 1, 2) }},
		"live events are skipped":           {"event 2 was skipped: the call begins with 3", func(h *history) { h.mixed("BLL"); h.call(202, 3) }},
		"backfill is skipped":               {"event 1 was skipped: the call begins with 2", func(h *history) { h.mixed("BBL"); h.call(202, 3); h.rest(202, 2) }},
		"skipped within a call":             {"event 3 was skipped within a call", func(h *history) { h.mixed("BLLLB"); h.call(202, 1, 2, 4) }},
		"backfill is lost":                  {"event 1 is not delivered", func(h *history) { h.mixed("BL"); h.call(202, 2) }},
		"live is lost":                      {"event 2 is not delivered", func(h *history) { h.mixed("BL"); h.call(202, 1) }},
		"the company's properties": {"", func(h *history) {
			h.companies(`{"id":"a","seats":2}`)
			h.receive(202, `{"user_id":"ann","metadata":{"e1":true},"company":{"id":"a","only":1}}`)
		}},
		"the company's property goes back": {`takes company "a": seats back`, func(h *history) {
			h.companies(`{"id":"a","seats":2}`)
			h.receive(202, `{"user_id":"ann","metadata":{"e1":true},"company":{"id":"a","seats":1,"only":1}}`)
		}},
		"the company's property is not set": {`does not set company "a": only`, func(h *history) { h.companies(`{"id":"a","seats":2}`); h.rest(202, 1) }},
		"nothing of the company is left":    {"", func(h *history) { h.companies(`{"id":"a","seats":2,"only":2}`); h.rest(202, 1) }},
		"the user is in another company":    {"", func(h *history) { h.companies(`{"id":"b"}`); h.rest(202, 1) }},
		"the user is back in the company": {"", func(h *history) {
			h.companies(`{"id":"b"}`)
			h.Next("ann", Event{Company: `{"id":"a"}`})
			h.receive(202, `{"user_id":"ann","metadata":{"n":3,"e1":true,"e3":true},"company":{"id":"a","seats":1,"only":1}}`)
		}},
		"the user is back in the company, later": {"", func(h *history) {
			h.companies(`{"id":"b"}`)
			h.Next("ann", Event{Company: `{"id":"a"}`})
			h.receive(202, `{"user_id":"ann","metadata":{"n":3,"e1":true,"e3":true},"company":{"id":"a"}}`)
		}},
		"moved back into a company": {`sets company "a": only`, func(h *history) {
			h.companies(`{"id":"b"}`)
			h.receive(202, `{"user_id":"ann","metadata":{"e1":true},"company":{"id":"a","only":1}}`)
		}},
		"live events merged across companies": {`does not set company "a": x`, func(h *history) {
			h.Next("ann", Event{Company: `{"id":"a","x":1}`})
			h.Next("ann", Event{Company: `{"id":"b"}`})
			h.receive(202, `{"user_id":"ann","metadata":{"n":2,"e1":true,"e2":true},"company":{"id":"b"}}`)
		}},
	}.judge(t)
}

// dies adds the expected dead letters of these events.
func (h *history) dies(numbers ...int) {
	for _, n := range numbers {
		h.letter(h.bodies[n-1], "rejected", "422", fmt.Sprint(n))
	}
}

// nonsense is an event that the oracle did not make, a call with it, and its dead letter.
func (h *history) nonsense(reason deadletter.Reason, status int) {
	body := h.MustDie([]byte(`{"user_id":"eve","company":{}}`), reason)
	h.receive(status, string(body))
	h.letter(body, string(reason), "422", "1")
}

// expect fails unless there is exactly one finding and it contains this text; an empty text means
// none.
func expect(t *testing.T, found []Finding, want string) {
	t.Helper()
	switch {
	case want == "" && len(found) > 0:
		t.Errorf("found for nothing: %v", found)
	case want != "" && (len(found) != 1 || !strings.Contains(found[0].String(), want)):
		t.Errorf("found %v, want one with: %s", found, want)
	}
}

// A call is judged once, even if Order gets it again.
func TestOrderGoesOn(t *testing.T) {
	t.Parallel()
	h := &history{Oracle: New()}
	h.publish(5, 3)
	h.call(202, 1, 2)
	expect(t, h.Order(h.calls), "")
	expect(t, h.Order(h.calls), "")
	h.call(202, 2, 4)
	h.call(202, 5)
	expect(t, h.Order(h.calls), "")
	if delivered, repeats := h.Counts(); delivered != 4 || repeats != 1 || h.Due("ann") != 6 {
		t.Errorf("%d delivered, %d repeats, %d due; want 4, 1, 6", delivered, repeats, h.Due("ann"))
	}
}

// The oracle's profiles agree with those that the stand-in makes from the same calls.
func TestProfiles(t *testing.T) {
	t.Parallel()
	api := userpilottest.New(userpilottest.Options{KeepCalls: true})
	h := &history{Oracle: New()}
	for range 40 {
		q := httptest.NewRequest(http.MethodPost, "/v1/identify", bytes.NewReader(h.Next("ann", Event{Varied: true})))
		q.Header = http.Header{"Authorization": {"Token x"}, "Content-Type": {"application/json"}, "X-Api-Version": {"2020-09-22"}}
		api.ServeHTTP(httptest.NewRecorder(), q)
	}
	expect(t, h.Verdict(api.Calls(), nil), "")
	p, _ := api.Profile("ann")
	maps.DeleteFunc(p.Properties, func(name string, _ json.RawMessage) bool { return name[0] == 'e' }) // the marks
	got := profile{}
	got.apply(Identify{Metadata: p.Properties}.settings())
	for n := range 3 {
		company, _ := api.Company(fmt.Sprintf("company-%d-of-ann", n))
		company["id"] = fmt.Appendf(nil, `"company-%d-of-ann"`, n)
		got.apply(Identify{Company: company}.settings())
	}
	got[itsCompany] = fmt.Sprintf("%q", p.Company)
	if d := h.users["ann"].have.difference(got); d != "" {
		t.Error("unlike the stand-in's:", d)
	}
}

func TestBusiest(t *testing.T) {
	t.Parallel()
	var times []time.Time
	for _, at := range []int64{30, 0, 10, 11, 12, 20} {
		times = append(times, time.Unix(at, 0))
	}
	for length, want := range map[time.Duration]int{time.Second - 1: 1, time.Second: 2, 3 * time.Second: 3, 10 * time.Second: 4, time.Minute: 6} {
		if got := Busiest(times, length); got != want {
			t.Errorf("%d within %v, want %d", got, length, want)
		}
	}
}
