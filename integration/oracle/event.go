package oracle

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// Event describes a user's next event.
type Event struct {
	More     string            // further members of the metadata as JSON, each after a comma
	Company  string            // the company as JSON; empty for none
	Varied   bool              // includes everything that merging could get wrong, and a Company of its own
	Backfill bool              // the caller publishes it as backfill
	Dies     deadletter.Reason // reason of the dead letter it must become; empty if it must be delivered
}

// body returns the body of a user's n-th event.
func (e Event) body(user string, n int) []byte {
	more, company := e.More, e.Company
	if e.Varied {
		more, company = vary(user, n)
		more += e.More
	}
	if company != "" {
		company = `,"company":` + company
	}
	return fmt.Appendf(nil, `{"user_id":%q,"metadata":{"n":%d,"e%d":true%s}%s}`, user, n, n, more, company)
}

// vary makes a number longer than a float64, a property that comes and goes, and a company that
// changes and whose properties change. The periods are coprime, so that all combinations occur.
func vary(user string, n int) (more, company string) {
	note := strconv.Quote("note " + strconv.Itoa(n))
	if n%3 == 0 {
		note = "null"
	}
	if n%2 == 0 {
		company = fmt.Sprintf(`{"id":"company-%d-of-%s","seats":%d,"s%d":%d}`, n/8%3, user, n, n%5, n)
	}
	return fmt.Sprintf(`,"amount":98765432109876543210.%d,"plan":"p%d","note":%s`, n, n%7, note), company
}

// Properties are the properties of a user or a company, with their values as they were written.
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

// Call is an identify call as the API received it.
type Call struct {
	Identify
	At      time.Time
	Status  int  // what the API answers; 0 cuts the connection
	Applied bool // whether it takes effect
}

// Low returns the number of the oldest event in the call. The call must hold one.
func (c Call) Low() int { return c.Numbers[0] }

// High returns the number of the newest event in the call. The call must hold one.
func (c Call) High() int { return c.Numbers[len(c.Numbers)-1] }

// refused reports whether the answer says that nothing was done: also a 2xx that is a web page, and
// not the API's. After any other answer only the API knows.
func (c Call) refused() bool {
	switch {
	case c.Status == http.StatusNetworkAuthenticationRequired: // by what stands in front of every server
		return true
	case c.Status >= 200 && c.Status < 300:
		return !c.Applied
	}
	return c.Status >= 300 && c.Status < 500 && c.Status != http.StatusRequestTimeout
}
