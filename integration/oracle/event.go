package oracle

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// Event is what a user's next event is to be like.
type Event struct {
	More   string       // further members of the metadata as they are, each after a comma
	Varied bool         // there is in it whatever merging could get wrong
	Dies   queue.Reason // of the dead letter that must come of it; empty if it must be delivered
}

// body is that of a user's n-th event.
func (e Event) body(user string, n int) []byte {
	more, company := e.More, ""
	if e.Varied {
		more, company = vary(user, n)
		more += e.More
	}
	return fmt.Appendf(nil, `{"user_id":%q,"metadata":{"n":%d,"e%d":true%s}%s}`, user, n, n, more, company)
}

// vary makes a number longer than a float64, a property that comes and goes, and a company that
// changes, and has properties that change. The periods have no factor in common, so that all meet.
func vary(user string, n int) (more, company string) {
	note := strconv.Quote("note " + strconv.Itoa(n))
	if n%3 == 0 {
		note = "null"
	}
	if n%2 == 0 {
		company = fmt.Sprintf(`,"company":{"id":"company-%d-of-%s","seats":%d,"s%d":%d}`, n/8%3, user, n, n%5, n)
	}
	return fmt.Sprintf(`,"amount":98765432109876543210.%d,"plan":"p%d","note":%s`, n, n%7, note), company
}

// Properties are those of a user or a company, with their values as they were written.
type Properties map[string]json.RawMessage

// Identify is the body of a call or of an event.
type Identify struct {
	User     string     `json:"user_id"`
	Metadata Properties `json:"metadata"` // without the marks of the events
	Company  Properties `json:"company"`
	Numbers  []int      `json:"-"` // of the events in it, ascending
}

// Parse reads a body.
func Parse(body []byte) (i Identify, err error) {
	if err := json.Unmarshal(body, &i); err != nil {
		return i, err
	}
	for name, value := range i.Metadata {
		digits, isMark := strings.CutPrefix(name, "e")
		if n, err := strconv.Atoi(digits); err == nil && isMark && string(value) == "true" {
			i.Numbers = append(i.Numbers, n)
			delete(i.Metadata, name)
		}
	}
	slices.Sort(i.Numbers)
	return i, nil
}

// Call is an identify as the API received it.
type Call struct {
	Identify
	At      time.Time
	Status  int  // that the API answers; 0 cuts the connection
	Applied bool // whether it takes effect
}

// Low is the number of the oldest event in the call, which must hold one.
func (c Call) Low() int { return c.Numbers[0] }

// High is that of the newest.
func (c Call) High() int { return c.Numbers[len(c.Numbers)-1] }

// refused reports whether the answer says that nothing was done. After any other nobody but the API
// knows.
func (c Call) refused() bool { return c.Status >= 300 && c.Status < 500 && c.Status != 408 }
