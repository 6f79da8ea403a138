package userpilot

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestProperties(t *testing.T) {
	t.Parallel()
	for body, want := range map[string][]string{
		`{"user_id":"u"}`:                                         {""},
		`{"user_id":"u","metadata":{}}`:                           {""},
		`{"user_id":"u","metadata":{"a":1,"b/c":null,"a":2}}`:     {"/metadata/a", "/metadata/b~1c", "/metadata/a"},
		`{"metadata":{"\u0061":[{"x":1}]},"user_id":"u","x":{}}`:  {"/metadata/a", "/x"},
		`{"user_id":"u","metadata":5,"company":null}`:             {"/metadata", "/company="},
		`{"user_id":"u","company":{"plan":1,"company_id":"a/b"}}`: {"/company=a/b", "/company/a~1b/plan"},
		`{"user_id":"u","company":{"id":7,"company_id":"7"}}`:     {"/company=7"},
		`{"user_id":"u","company":{"id":"7","company_id":"8"}}`:   {"/company=7\x008"},
	} {
		e, err := Parse([]byte(body))
		if err != nil {
			t.Fatal(body, err)
		}
		var got []string
		for p := range e.Properties() {
			if p.Path == companyPath {
				p.Path += "=" + p.Company
			}
			got = append(got, p.Path)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s sets %q, want %q", body, got, want)
		}
		for range e.Properties() {
			break
		}
	}
}

// The remaining members are unchanged, and there is no residue of the others.
func TestWithout(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ body, superseded, want string }{
		{`{"user_id":"u","metadata":{"a": 1.0,"b":2}}`, "", `{"user_id":"u","metadata":{"a": 1.0,"b":2}}`},
		{`{"user_id":"u","metadata":{"a": 1.0,"b":2}}`, "/metadata/b", `{"user_id":"u","metadata":{"a":1.0}}`},
		{`{"user_id":"u","metadata":{"a":1,"b":2}}`, "/metadata/a /metadata/b", ""},
		{`{"metadata":{"a":1},"user_id":"u", "x" : [1] }`, "/metadata/a", `{"user_id":"u","x":[1]}`},
		{`{"metadata":{"a":1},"user_id":"u","x":[1]}`, "/metadata/a /x", ""},
		{`{"user_id":"u","metadata":{"a":1,"a":2,"c":3}}`, "/metadata/a", `{"user_id":"u","metadata":{"c":3}}`},
		{`{"user_id":"u","metadata":null}`, "/metadata", ""},
		{`{"user_id":"u"}`, "", `{"user_id":"u"}`},
		{`{"user_id":"u","metadata":{}}`, "user", ""},
		{`{"user_id":"u","metadata":{"a":1}}`, "user", `{"user_id":"u","metadata":{"a":1}}`},
		// The user has moved to another company: the whole company is removed.
		{`{"user_id":"u","company":{"id":"x","p":1},"metadata":{"a":1}}`, "/company", `{"user_id":"u","metadata":{"a":1}}`},
		{`{"user_id":"u","company":{"id":"x","p":1}}`, "/company", ""},
		// A newer event names the same company: only its properties remain.
		{`{"user_id":"u","company":{"id":"x","p":1,"q":2}}`, "=/company /company/x/q", `{"user_id":"u","company":{"id":"x","p":1}}`},
		{`{"user_id":"u","company":{"id":"x","p":1},"metadata":{"a":1}}`, "=/company /company/x/p", `{"user_id":"u","metadata":{"a":1}}`},
		{`{"user_id":"u","company":{"id":"x"}}`, "=/company", ""},
		// No newer event names a company.
		{`{"user_id":"u","company":{"id":"x","p":1}}`, "/company/x/p", `{"user_id":"u","company":{"id":"x"}}`},
		{`{"user_id":"u","company":{"id":"x","p":1}}`, "/company/y/p", `{"user_id":"u","company":{"id":"x","p":1}}`},
		{`{"user_id":"u","company":null}`, "/company", ""},
	} {
		e, err := Parse([]byte(test.body))
		if err != nil {
			t.Fatal(test.body, err)
		}
		rest, ok := e.Without(func(p Property) Standing {
			name := p.Path
			if name == "" {
				name = "user"
			}
			for s := range strings.FieldsSeq(test.superseded) {
				if s == name {
					return Superseded
				}
				if s == "="+name {
					return Repeated
				}
			}
			return Newest
		})
		if ok != (test.want != "") || string(rest.Body()) != test.want {
			t.Errorf("%s without %s: %s %v, want %s", test.body, test.superseded, rest.Body(), ok, test.want)
		}
		if ok && rest.UserID() != "u" {
			t.Errorf("%s without %s: of the user %q", test.body, test.superseded, rest.UserID())
		}
	}
}

func FuzzWithout(f *testing.F) {
	f.Add([]byte(`{"user_id":"u","company":{"id":"x","p":1},"metadata":{"a":1,"a":{"b":[]}},"x":null}`), uint64(0b1010))
	f.Fuzz(func(t *testing.T, body []byte, choice uint64) {
		e, err := Parse(body)
		if err != nil {
			return
		}
		// The same standing for the same path, as from a version record.
		standing := func(p Property) Standing {
			sum := uint64(len(p.Path))
			for _, b := range []byte(p.Path) {
				sum = sum*31 + uint64(b)
			}
			return Standing(choice >> (2 * (sum % 32)) & 3 % 3)
		}
		rest, ok := e.Without(standing)
		if !ok {
			return
		}
		if rest.UserID() != e.UserID() {
			t.Fatalf("another user: %q", rest.Body())
		}
		again, ok := rest.Without(standing)
		if !ok || !bytes.Equal(again.Body(), rest.Body()) {
			t.Fatalf("%q is reduced to %q, and that to %q", body, rest.Body(), again.Body())
		}
	})
}
