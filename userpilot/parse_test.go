package userpilot_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, body string
		user       string
		err        string // "" if valid
	}{
		{"least", `{"user_id":"u"}`, "u", ""},
		{"all members", `{"user_id":"u","metadata":{"a":1},"company":{"id":"c"}}`, "u", ""},
		{"space around", " \t\r\n{ \"user_id\" : \"u\" } \n", "u", ""},
		{"escaped user", `{"user_id":"\u0075\n\ud83d\ude00"}`, "u\n😀", ""},
		{"escaped name", `{"user\u005fid":"u"}`, "u", ""},
		{"other case is another name", `{"User_ID":5,"user_id":"u"}`, "u", ""},
		{"unknown member", `{"user_id":"u","x":{"y":[1]}}`, "u", ""},
		{"metadata null", `{"user_id":"u","metadata":null}`, "u", ""},
		{"metadata array", `{"user_id":"u","metadata":[1]}`, "u", ""},
		{"nested property", `{"user_id":"u","metadata":{"a":{"b":[]}}}`, "u", ""},
		{"property twice", `{"user_id":"u","metadata":{"a":1,"a":2}}`, "u", ""},
		{"metadata twice", `{"user_id":"u","metadata":{},"metadata":{}}`, "u", ""},
		{"number as it comes", `{"user_id":"u","metadata":{"a":1e400}}`, "u", ""},
		{"company null", `{"user_id":"u","company":null}`, "u", ""},
		{"company_id", `{"user_id":"u","company":{"company_id":"c"}}`, "u", ""},
		{"company id twice", `{"user_id":"u","company":{"id":"","company_id":"c"}}`, "u", ""},
		{"numeric company id", `{"user_id":"u","company":{"id":7}}`, "u", ""},
		{"escaped company id name", `{"user_id":"u","company":{"\u0069d":"c"}}`, "u", ""},

		{"no body", "", "", "body: is empty"},
		{"blank", "  ", "", "body: is not JSON: it ends too early, after byte 2"},
		{"text", "hello", "", "body: is not JSON: it breaks after byte 0"},
		{"null", "null", "", "body: must be a JSON object"},
		{"array", `[{"user_id":"u"}]`, "", "body: must be a JSON object"},
		{"byte order mark", "\ufeff{}", "", "body: is not JSON: it breaks after byte 0"},
		{"half", `{"user_id":"u","metadata":{"a`, "u", "body: is not JSON: it ends too early, after byte 29"},
		{"half a user", `{"user_id":"u`, "", "body: is not JSON: it ends too early, after byte 13"},
		{"broken after the user", `{"user_id":"u","a":secret}`, "u", "body: is not JSON: it breaks after byte 19"},
		{"trailing comma", `{"user_id":"u",}`, "u", "body: is not JSON: it breaks after byte 14"},
		{"second object", `{"user_id":"u"}{}`, "u", "body: has trailing data after byte 15"},
		{"trailing text", `{"user_id":"u"} secret`, "u", "body: has trailing data after byte 15"},
		{"trailing NUL", "{\"user_id\":\"u\"}\x00", "u", "body: has trailing data after byte 15"},
		{"invalid UTF-8", "{\"user_id\":\"u\",\"a\":\"\xff\"}", "u", "body: is not valid UTF-8"},
		{"lone surrogate", `{"user_id":"\ud800"}`, "", "body: has half a surrogate pair after byte 12"},
		{"deep", `{"user_id":"u","a":` + strings.Repeat(`{"a":`, 20_000), "u", "body: is nested deeper than 10000 levels"},
		{"deep array", `{"user_id":"u","a":` + strings.Repeat(`[`, 20_000), "u", "body: is nested deeper than 10000 levels"},

		{"no user", `{}`, "", "user_id: is missing"},
		{"user in metadata only", `{"metadata":{"user_id":"u"}}`, "", "user_id: is missing"},
		{"null user", `{"user_id":null}`, "", "user_id: is null"},
		{"empty user", `{"user_id":""}`, "", "user_id: is empty"},
		{"numeric user", `{"user_id":42}`, "42", "user_id: must be a string, not a number"},
		{"numeric user as it is written", `{"user_id":-1.50e2,"metadata":{"a`, "-1.50e2", "body: is not JSON: it ends too early, after byte 33"},
		{"numeric user twice", `{"user_id":42,"user_id":"42"}`, "", "user_id: must be a string, not a number"},
		{"object user", `{"user_id":{"secret":1}}`, "", "user_id: must be a string, not an object"},
		{"true user", `{"user_id":true}`, "", "user_id: must be a string, not a boolean"},
		{"user twice", `{"user_id":"u","user_id":"u"}`, "", "user_id: appears twice"},
		{"user twice, escaped", `{"user_id":"u","user\u005fid":"v"}`, "", "user_id: appears twice"},

		{"company string", `{"company":"secret","user_id":"u"}`, "u", "company: must be an object, not a string"},
		{"company number", `{"user_id":"u","company":7}`, "u", "company: must be an object, not a number"},
		{"company array", `{"user_id":"u","company":[]}`, "u", "company: must be an object, not an array"},
		{"company false", `{"user_id":"u","company":false}`, "u", "company: must be an object, not a boolean"},
		{"company without id", `{"user_id":"u","company":{"ID":"c"}}`, "u", "company.id: is missing: a company needs an id or a company_id"},
		{"company of nulls", `{"user_id":"u","company":{"id":null,"company_id":""}}`, "u", "company.id: is missing: a company needs an id or a company_id"},
		{"second company without id", `{"user_id":"u","company":{"id":"c"},"company":{}}`, "u", "company.id: is missing: a company needs an id or a company_id"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			event, err := userpilot.Parse([]byte(test.body))
			if got := errorText(err); got != test.err {
				t.Errorf("error %q, want %q", got, test.err)
			}
			if event.UserID() != test.user {
				t.Errorf("user %q, want %q", event.UserID(), test.user)
			}
			if string(event.Body()) != test.body {
				t.Errorf("body %q, want %q", event.Body(), test.body)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	frame := `{"user_id":"u","metadata":{"a":""}}`
	body := func(size int) []byte {
		return []byte(strings.Replace(frame, `""`, `"`+strings.Repeat("x", size-len(frame))+`"`, 1))
	}
	if _, err := userpilot.Parse(body(userpilot.MaxEventBytes)); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	event, err := userpilot.Parse(body(userpilot.MaxEventBytes + 1))
	if got, want := errorText(err), "body: is larger than 524288 bytes"; got != want {
		t.Errorf("over the limit: %q, want %q", got, want)
	}
	if event.UserID() != "u" {
		t.Errorf("over the limit: user %q, want u", event.UserID())
	}
	if _, half := userpilot.Parse(body(userpilot.MaxEventBytes + 9)[:userpilot.MaxEventBytes+1]); errorText(half) != errorText(err) {
		t.Errorf("over the limit and broken: %v", half)
	}
}

// Parse keeps a body's bytes and does not copy them: lanes hold very many.
func TestParseKeepsBody(t *testing.T) {
	t.Parallel()
	body := event1KiB(1, 1)
	event, err := userpilot.Parse(body)
	if err != nil {
		t.Fatal(err)
	}
	if &event.Body()[0] != &body[0] {
		t.Error("the body was copied")
	}
}

func TestCheckStrict(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, body, err string }{
		{"flat", `{"user_id":"u","metadata":{"a":1,"b":null,"c":"d","e":true},"company":{"id":"c"}}`, ""},
		{"no metadata", `{"user_id":"u","company":null}`, ""},
		{"metadata null", `{"user_id":"u","metadata":null}`, "metadata: must be an object, not null"},
		{"metadata array", `{"user_id":"u","metadata":[]}`, "metadata: must be an object, not an array"},
		{"array", `{"user_id":"u","metadata":{"a":1,"tags":["secret"]}}`,
			`metadata."tags": must be a string, a number, a boolean or null, not an array`},
		{"object in the company", `{"user_id":"u","company":{"id":"c","plan":{}}}`,
			`company."plan": must be a string, a number, a boolean or null, not an object`},
		{"the first of two", `{"user_id":"u","metadata":{"a":[],"b":{}},"x":1}`,
			`metadata."a": must be a string, a number, a boolean or null, not an array`},
		{"unknown member", `{"user_id":"u","groups":[]}`,
			`"groups": is not a member of an identify (user_id, metadata, company)`},
		{"escaped names", `{"user\u005fid":"u","met\u0061data":{}}`, ""},
		{"a name twice", `{"user_id":"u","metadata":{"a":1,"\u0061":2}}`, `metadata."a": appears twice`},
		{"a member twice", `{"user_id":"u","metadata":{},"metadata":{}}`, `"metadata": appears twice`},
		{"two company ids", `{"user_id":"u","company":{"id":"c","company_id":"c"}}`, "company: has both id and company_id"},
		{"a company's id", `{"user_id":"u","company":{"id":"undefined"}}`, "company.id: is no id, but what a program writes where it has none"},
		{"blank", `{"user_id":"\u00a0 "}`, "user_id: is blank"},
		{"blanks at its ends", `{"user_id":"ann "}`, "user_id: has blanks at its ends"},
		{"unseen", `{"user_id":"\u200b\ufeff"}`, "user_id: is blank"},
		{"unseen at its ends", `{"user_id":"\ufeffann"}`, "user_id: has blanks at its ends"},
		{"rounded by a program", `{"user_id":"1e+21"}`, "user_id: is a number that a spreadsheet or a program has rounded"},
		{"33 names, one twice", `{"user_id":"u","metadata":{` + numbered(32) + `,"a":1,"b":1,"a":2}}`, `metadata."a": appears twice`},
		{"an object", `{"user_id":"[object Object]"}`, "user_id: is no id, but what a program writes where it has none"},
		{"NaN", `{"user_id":"NaN"}`, "user_id: is no id, but what a program writes where it has none"},
		{"a spreadsheet's error", `{"user_id":"#REF!"}`, "user_id: is no id, but what a program writes where it has none"},
		{"a template", `{"user_id":"{{ user.id }}"}`, "user_id: has the text of a template in it"},
		{"a formula", `{"user_id":"=\"007\""}`, "user_id: is a spreadsheet's formula"},
		{"rounded", `{"user_id":"1.23457E+15"}`, "user_id: is a number that a spreadsheet or a program has rounded"},
		{"rounded with a comma", `{"user_id":"1,2E+05"}`, "user_id: is a number that a spreadsheet or a program has rounded"},
		{"like one", `{"user_id":"1E+x"}`, ""},
		{"a bar", `{"user_id":"nan|none"}`, ""},
		{"500 properties", `{"user_id":"u","metadata":{` + numbered(500) + `}}`, ""},
		{"501 properties", `{"user_id":"u","metadata":{` + numbered(501) + `}}`, "metadata: has more than 500 properties"},
		{"a name of 255", `{"user_id":"u","metadata":{"` + strings.Repeat("ü", 255) + `":1}}`, ""},
		{"a name of 256", `{"user_id":"u","metadata":{"` + strings.Repeat("ü", 256) + `":1}}`, `metadata."` + strings.Repeat("ü", 64) + `": has a name of more than 255 characters`},
		{"a value of 65,535", `{"user_id":"u","metadata":{"a":"` + strings.Repeat("ü", 65_535) + `"}}`, ""},
		{"a value of 65,536", `{"user_id":"u","metadata":{"a":"` + strings.Repeat("ü", 65_536) + `"}}`, `metadata."a": is longer than 65535 characters`},
		{"dirty name", `{"user_id":"u","a\u0000\n\"b` + strings.Repeat("x", 100) + `":1}`,
			`"a  \"b` + strings.Repeat("x", 59) + `": is not a member of an identify (user_id, metadata, company)`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			event, err := userpilot.Parse([]byte(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if got := errorText(event.CheckStrict()); got != test.err {
				t.Errorf("got  %s\nwant %s", got, test.err)
			}
		})
	}
}

// numbered is that many members of an object.
func numbered(count int) string {
	var b strings.Builder
	for i := range count {
		fmt.Fprintf(&b, `,"p%d":%d`, i, i)
	}
	return b.String()[1:]
}

// errorText returns the text of an *InvalidError, and a complaint for any other error.
func errorText(err error) string {
	if err == nil {
		return ""
	}
	if _, ok := errors.AsType[*userpilot.InvalidError](err); !ok {
		return fmt.Sprintf("%T: %v", err, err)
	}
	return err.Error()
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", `{"user_id":"u"}`, `{"user_id":"u","metadata":{"a":1e400,"b":null}}`,
		`{"user_id":"u","company":{"id":"c","company_id":7}}`, `{"user\u005fid":"\ud83d\ude00","x":[[{}]]}`,
		`{"user_id":"u","user_id":"v"}`, "\ufeff{}", `{"company":5,"user_id":"u"} x`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := string(body)
		event, err := userpilot.Parse(body)
		if string(body) != before || string(event.Body()) != before {
			t.Fatal("the body was changed")
		}
		if err == nil && event.UserID() == "" {
			t.Fatal("valid without a user")
		}
		if err == nil {
			checkParsed(t, event)
		}
	})
}
