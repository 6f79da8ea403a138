package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// userDomain is in every user id of these tests, and must be in no log.
const userDomain = "@users.example"

// users names n users.
func users(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("user-%d%s", i, userDomain)
	}
	return names
}

// oracle knows what was published and judges what became of it, from outside: by what the
// stand-in received, what its profiles are, and what lies in the dead-letter stream.
//
// Each event of a user bears its number as the property "n", and a property of its own,
// "e<number>", so that a merged call shows whose events it held.
type oracle struct {
	t court

	mu        sync.Mutex
	published map[string]int // how many events of each user must be delivered
	doomed    map[string]int // bodies that must be dead letters, and how often
	profiles  map[string]map[string]string
	companies map[string]map[string]string
	company   map[string]string // each user's last
}

// court hears what the oracle finds: a test, as a rule.
type court interface {
	Helper()
	Errorf(format string, args ...any)
}

func newOracle(t court) *oracle {
	return &oracle{
		t: t, published: map[string]int{}, doomed: map[string]int{},
		profiles: map[string]map[string]string{}, companies: map[string]map[string]string{}, company: map[string]string{},
	}
}

// next makes the user's next event and notes what one call for it alone would do to the
// profile. There is in it whatever merging could get wrong: a number longer than a
// float64, a property that comes and goes, a company that changes.
func (o *oracle) next(user string) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.published[user]++
	n := o.published[user]
	number, mark := fmt.Sprint(n), fmt.Sprintf("e%d", n)
	amount := number + "2345678901234567890.10"
	company := fmt.Sprintf("company-%d-%s", n/4, user)

	set(o.profiles, user, map[string]string{"n": number, mark: "true", "amount": amount})
	set(o.companies, company, map[string]string{"seats": number})
	o.company[user] = company
	plan := `"pro"`
	if n%3 == 0 {
		plan = "null"
		delete(o.profiles[user], "plan")
	} else {
		o.profiles[user]["plan"] = plan
	}
	return fmt.Appendf(nil, `{"user_id":%q,"metadata":{"n":%s,%q:true,"amount":%s,"plan":%s},"company":{"id":%q,"seats":%s}}`,
		user, number, mark, amount, plan, company, number)
}

// count is how many events of the user there are.
func (o *oracle) count(user string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.published[user]
}

func set(of map[string]map[string]string, id string, properties map[string]string) {
	if of[id] == nil {
		of[id] = map[string]string{}
	}
	maps.Copy(of[id], properties)
}

// dooms notes that this body must become a dead letter.
func (o *oracle) dooms(body []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.doomed[string(body)]++
	return body
}

// identify is a call as the oracle reads it.
type identify struct {
	User     string                     `json:"user_id"`
	Metadata map[string]json.RawMessage `json:"metadata"`
}

// numbers are those of the events that a call held, in order. Calls about users that the
// oracle did not name hold none.
func (o *oracle) numbers(body []byte) []int {
	o.t.Helper()
	var call identify
	if err := json.Unmarshal(body, &call); err != nil {
		o.t.Errorf("a call's body: %v", err)
	}
	var held []int
	for name := range call.Metadata {
		var n int
		if _, err := fmt.Sscanf(name, "e%d", &n); err == nil {
			held = append(held, n)
		}
	}
	slices.Sort(held)
	return held
}

// checkCalls fails if a user was ever taken back, if an event came again that was not in the
// user's current call, or if one was skipped or lost.
func (o *oracle) checkCalls(calls []userpilottest.Call) {
	o.t.Helper()
	current := map[string][]int{} // what each user's latest call held
	for _, c := range calls {
		held := o.numbers(c.Body)
		if !c.Applied || len(held) == 0 {
			continue
		}
		if before := current[c.User]; before != nil {
			o.checkStep(c, before, held)
		} else if held[0] != 1 {
			o.t.Errorf("%s: the first event delivered is %d", c.User, held[0])
		}
		current[c.User] = held
	}
	for user, n := range o.published {
		if held := current[user]; len(held) == 0 || held[len(held)-1] != n {
			o.t.Errorf("%s: of %d events the last call held %v", user, n, held)
		}
	}
}

// checkStep compares two calls of a user that follow one another.
func (o *oracle) checkStep(c userpilottest.Call, before, held []int) {
	o.t.Helper()
	newest, last := before[len(before)-1], held[len(held)-1]
	at := c.Time.Format(time.StampMilli)
	switch {
	case last < newest:
		o.t.Errorf("%s, %s: taken back from event %d to %d", at, c.User, newest, last)
	case held[0] < before[0]:
		o.t.Errorf("%s, %s: event %d came again, and the current call was %v", at, c.User, held[0], before)
	case held[0] > newest+1:
		o.t.Errorf("%s, %s: after event %d came %d", at, c.User, newest, held[0])
	}
	if len(held) != last-held[0]+1 {
		o.t.Errorf("%s, %s: a call with gaps: %v", at, c.User, held)
	}
}

// repeats counts the events that were delivered more than once.
func (o *oracle) repeats(calls []userpilottest.Call) int {
	times := map[string]int{}
	for _, c := range calls {
		if c.Applied {
			for _, n := range o.numbers(c.Body) {
				times[fmt.Sprintf("%s/%d", c.User, n)]++
			}
		}
	}
	repeated := 0
	for _, n := range times {
		repeated += min(n-1, 1)
	}
	return repeated
}

// checkProfiles fails if a profile is not what one call for each event, in order, had made.
func (o *oracle) checkProfiles(api *userpilottest.Server) {
	o.t.Helper()
	for user, want := range o.profiles {
		profile, _ := api.Profile(user)
		if got := texts(profile.Properties); !maps.Equal(got, want) {
			o.t.Errorf("%s: the profile is\n%v, want\n%v", user, got, want)
		}
		if profile.Company != o.company[user] {
			o.t.Errorf("%s: the company is %s, want %s", user, profile.Company, o.company[user])
		}
	}
	for id, want := range o.companies {
		company, _ := api.Company(id)
		if got := texts(company); !maps.Equal(got, want) {
			o.t.Errorf("%s: is\n%v, want\n%v", id, got, want)
		}
	}
}

func texts(properties map[string]json.RawMessage) map[string]string {
	all := map[string]string{}
	for name, value := range properties {
		all[name] = string(value)
	}
	return all
}

// checkDead fails unless exactly the doomed are dead letters, each once, byte for byte.
func (o *oracle) checkDead(letters []*jetstream.RawStreamMsg) {
	o.t.Helper()
	dead := map[string]int{}
	for _, letter := range letters {
		dead[string(letter.Data)]++
	}
	for body, n := range dead {
		if n != o.doomed[body] {
			o.t.Errorf("%d dead letters, want %d: %.80q", n, o.doomed[body], body)
		}
	}
	for body, n := range o.doomed {
		if dead[body] == 0 {
			o.t.Errorf("no dead letter, want %d: %.80q", n, body)
		}
	}
}
