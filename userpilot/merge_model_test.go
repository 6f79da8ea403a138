package userpilot_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/userpilot"
)

// world is the documented effect of calls on Userpilot, written as simply as possible and
// with encoding/json, which the package under test does not use for this.
type world struct {
	users     map[string]map[string]string // properties as they were written
	companyOf map[string]string
	companies map[string]map[string]string
	fold      func(string) string // how the receiver normalizes names
}

func newWorld(fold func(string) string) *world {
	return &world{make(map[string]map[string]string), make(map[string]string), make(map[string]map[string]string), fold}
}

func (w *world) apply(body []byte) {
	var user string
	var metadata, company []member
	for _, m := range membersOf(body) {
		switch m.name {
		case "user_id":
			_ = json.Unmarshal(m.value, &user)
		case "metadata":
			metadata = membersOf(m.value)
		case "company":
			company = membersOf(m.value)
		}
	}
	w.set(w.users, user, metadata)
	if id := companyID(company); id != "" {
		w.companyOf[user] = id
		w.set(w.companies, id, company)
	}
}

func (w *world) set(all map[string]map[string]string, id string, sent []member) {
	if all[id] == nil {
		all[id] = make(map[string]string)
	}
	for _, m := range sent {
		if string(m.value) == "null" {
			delete(all[id], w.fold(m.name))
		} else {
			all[id][w.fold(m.name)] = string(m.value)
		}
	}
}

// companyID distinguishes id from company_id: Userpilot does not document how they relate.
func companyID(company []member) (id string) {
	for _, m := range company {
		if m.name == "id" || m.name == "company_id" {
			var value any
			_ = json.Unmarshal(m.value, &value)
			id = fmt.Sprint(m.name, "=", value)
		}
	}
	return id
}

type member struct {
	name  string
	value json.RawMessage
}

// membersOf returns the members of an object in order, or none if value is not an object.
func membersOf(object []byte) (members []member) {
	d := json.NewDecoder(bytes.NewReader(object))
	if open, _ := d.Token(); open != json.Delim('{') {
		return nil
	}
	for d.More() {
		name, _ := d.Token()
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return members
		}
		members = append(members, member{name.(string), value})
	}
	return members
}

// sameWorld reports whether two sequences of calls result in the same profiles, both for a
// case-sensitive and for a case-insensitive receiver.
func sameWorld(one, other [][]byte) error {
	for _, fold := range []func(string) string{strings.Clone, strings.ToLower} {
		a, b := newWorld(fold), newWorld(fold)
		for _, body := range one {
			a.apply(body)
		}
		for _, body := range other {
			b.apply(body)
		}
		a.withoutIDs()
		b.withoutIDs()
		a.fold, b.fold = nil, nil
		if !reflect.DeepEqual(a, b) {
			return fmt.Errorf("profiles differ:\n%s\n%v\n%s\n%v", bytes.Join(one, []byte("\n")), a, bytes.Join(other, []byte("\n")), b)
		}
	}
	return nil
}

// withoutIDs removes the ids from the companies' properties, where their spelling would
// matter: what identifies a company is the map's key.
func (w *world) withoutIDs() {
	for _, company := range w.companies {
		delete(company, "id")
		delete(company, "company_id")
	}
}

func TestMergeIsInvisible(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		bodies := rapid.SliceOfN(rapid.Custom(drawBody), 1, 12).Draw(t, "bodies")
		events := make([]userpilot.Event, len(bodies))
		for i, body := range bodies {
			var err error
			if events[i], err = userpilot.Parse(body); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
		}
		merged := mergeAll(t, events)
		if err := sameWorld(bodies, merged); err != nil {
			t.Fatal(err)
		}
		again := make([]userpilot.Event, len(merged))
		for i, body := range merged {
			var err error
			if again[i], err = userpilot.Parse(body); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
		}
		if err := sameWorld(bodies, mergeAll(t, again)); err != nil {
			t.Fatal("merged twice: ", err)
		}
	})
}

// mergeAll merges events in chunks of random length, like a lane whose events keep
// arriving, and returns the bodies of the calls.
func mergeAll(t *rapid.T, events []userpilot.Event) (bodies [][]byte) {
	for len(events) > 0 {
		chunk := rapid.IntRange(1, len(events)).Draw(t, "chunk")
		body, n := userpilot.Merge(events[:chunk])
		if n < 1 || n > chunk {
			t.Fatalf("merged %d of %d", n, chunk)
		}
		bodies, events = append(bodies, body), events[n:]
	}
	return bodies
}

func drawBody(t *rapid.T) []byte {
	members := []string{`"user_id":` + rapid.SampledFrom([]string{`"u"`, `"u"`, `"u"`, `"\u0075"`, `"v"`}).Draw(t, "user")}
	switch rapid.IntRange(0, 9).Draw(t, "metadata") {
	case 0:
	case 1:
		members = append(members, `"metadata":null`)
	case 2:
		members = append(members, `"met\u0061data":{}`)
	default:
		members = append(members, `"metadata":`+drawObject(t, nil))
	}
	switch rapid.IntRange(0, 9).Draw(t, "company") {
	case 0:
		members = append(members, `"company":null`)
	case 1, 2, 3, 4, 5:
		id := rapid.SampledFrom([]string{
			`"id":"c"`, `"id":"c"`, `"\u0069d":"\u0063"`, `"company_id":"c"`, `"id":"d"`, `"id":7`, `"id":"c","company_id":"d"`,
		}).Draw(t, "id")
		members = append(members, `"company":`+drawObject(t, []string{id}))
	}
	if rapid.IntRange(0, 19).Draw(t, "odd") == 0 {
		members = append(members, `"x":{}`)
	}
	return []byte("{" + strings.Join(rapid.Permutation(members).Draw(t, "order"), " ,") + "}")
}

func drawObject(t *rapid.T, members []string) string {
	for range rapid.IntRange(0, 4).Draw(t, "size") {
		name := rapid.SampledFrom([]string{`"a"`, `"\u0061"`, `"A"`, `"b"`, `"né"`, `"n\u00e9"`, `"\ud83d\ude00"`, `""`, `"q\"\\"`, `"user_id"`}).Draw(t, "name")
		value := rapid.SampledFrom([]string{
			`1`, `1.0`, `-0`, `1e400`, `12345678901234567890123`, `"x"`, `"\u0078"`, `""`, `null`, `null`, `true`, `false`, `"}"`, `"null"`,
			`[1]`, `{"a":null}`,
		}).Draw(t, "value")
		members = append(members, name+": "+value)
	}
	return "{ " + strings.Join(rapid.Permutation(members).Draw(t, "order"), ",") + "\n}"
}
