package dlq

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	l := &deadletter.Letter{
		ID: 12, Header: map[string][]string{"Dead-Code": {"E1"}, "Dead-History": {"one", "two"}},
		Body: []byte(`{"user_id":"ann","metadata":{"plan":"pro","seats":12345678901234567890,"big":1e999,"tags":["a","b"]}}`),
	}
	for expression, want := range map[string]string{
		".":                             "yes",
		"true, false":                   "yes",
		"false, null":                   "no",
		"empty":                         "no",
		"0":                             "yes", // as in jq
		`.event.metadata.plan == "pro"`: "yes",
		`.event.metadata.plan == "PRO"`: "no",
		`.headers["Dead-Code"] == "E1"`: "yes",
		`.headers["Dead-History"] == ["one","two"]`:                  "yes",
		`.headers["Dead-Nothing"]`:                                   "no",
		`.event.metadata.seats == 12345678901234567890`:              "yes",
		`.event.metadata.seats == 12345678901234567891`:              "no", // as floats they would be equal
		`.event.metadata.seats | tojson == "12345678901234567890"`:   "yes",
		`.event.metadata.big | tojson == "1e999"`:                    "yes",
		`.event.metadata.tags | any(. == "b")`:                       "yes",
		`.event.user_id | test("^a")`:                                "yes",
		`.event.metadata.plan | tonumber`:                            "--match: fails on dead letter 12, and --reveal shows why; wrap it in (...)? to skip such dead letters",
		`(.event.metadata.plan | tonumber)?`:                         "no",
		`error("x")`:                                                 "--match: fails on dead letter 12, and --reveal shows why; wrap it in (...)? to skip such dead letters",
		`$ENV | length > 0`:                                          "no",
		`now == now`:                                                 "yes",
		`.event | .metadata.plan = 7 | .metadata.plan == 7`:          "yes",
		`def f: f; if .event.user_id == "ann" then false else f end`: "no",
	} {
		j, err := compileJQ(expression)
		if err != nil {
			t.Errorf("%s: %v", expression, err)
			continue
		}
		got := map[bool]string{true: "yes", false: "no"}
		matched, err := j.matcher(t.Context(), false)(l)
		if text := got[matched]; err == nil && text != want || err != nil && err.Error() != want {
			t.Errorf("%s: %s, %v; want %s", expression, text, err, want)
		}
	}
	j, err := compileJQ(`.event.metadata.plan | tonumber`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.matcher(t.Context(), true)(l); err == nil || !strings.Contains(err.Error(), `"pro"`) {
		t.Errorf("with --reveal it says %v", err)
	}
}

func TestMatchOfWhatIsNotJSON(t *testing.T) {
	t.Parallel()
	j, err := compileJQ(`.event == null`)
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]bool{"": true, "{": true, "{} {}": true, `{"a":1}`: false, "\xff": true, `[1]`: false} {
		if got, err := j.matcher(t.Context(), false)(&deadletter.Letter{Body: []byte(body)}); got != want || err != nil {
			t.Errorf("%q: %v, %v", body, got, err)
		}
	}
}

// An expression without end ends when the command is interrupted.
func TestMatchEnds(t *testing.T) {
	t.Parallel()
	j, err := compileJQ(`def f: f; f`)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if _, err := j.matcher(ctx, false)(&deadletter.Letter{}); err == nil {
		t.Error("it ended by itself")
	}
}

// editsOf reads flags as a command does.
func editsOf(t testing.TB, args ...string) (*edits, error) {
	t.Helper()
	cmd := &cobra.Command{SilenceErrors: true}
	r := newEdits(cmd)
	return r, cmd.ParseFlags(args)
}

func TestRepair(t *testing.T) {
	t.Parallel()
	const event = `{"user_id": "ann", "metadata": {"plan": "pro", "seats": "12", "price": 1.50, "big": 12345678901234567890123, "a b": {"c=d": [1, 2]}}}`
	for name, test := range map[string]struct {
		args []string
		body string
		want string // or the error
	}{
		"a string":              {[]string{"--set", ".metadata.plan=basic"}, "", `{"metadata":{"a b":{"c=d":[1,2]},"big":12345678901234567890123,"plan":"basic","price":1.50,"seats":"12"},"user_id":"ann"}`},
		"a number to the digit": {[]string{"--set", ".x=12345678901234567890.10"}, `{"y":1e2}`, `{"x":12345678901234567890.10,"y":1e2}`},
		"JSON":                  {[]string{"--set", `.x={"a":[true,null]}`}, `{}`, `{"x":{"a":[true,null]}}`},
		"a string in quotes":    {[]string{"--set", `.x="12"`}, `{}`, `{"x":"12"}`},
		"without the dot":       {[]string{"--set", "metadata.plan=basic", "--set", ` metadata["a b"]["c=d"]=7`, "--delete", "metadata.seats", "--set", `user_id="42"`}, `{"user_id":42,"metadata":{"seats":1}}`, `{"metadata":{"a b":{"c=d":7},"plan":"basic"},"user_id":"42"}`},
		"all of an object":      {[]string{"--delete", "company", "--set", "metadata={}"}, `{"company":{},"metadata":{"a":1}}`, `{"metadata":{}}`},
		"an equals sign":        {[]string{"--set", `.x=a=b`}, `{}`, `{"x":"a=b"}`},
		"nothing":               {[]string{"--set", `.x=`}, `{}`, `{"x":""}`},
		"no expression":         {[]string{"--set", `.x=.y | error`}, `{}`, `{"x":".y | error"}`},
		"odd names":             {[]string{"--set", `.metadata["a b"]["c=d"][0]=7`, "--delete", `.metadata["a b"]["c=d"][1]`}, `{"metadata":{"a b":{"c=d":[1,2]}}}`, `{"metadata":{"a b":{"c=d":[7]}}}`},
		"new objects":           {[]string{"--set", `.metadata.plan=pro`}, `{"user_id":"ann"}`, `{"metadata":{"plan":"pro"},"user_id":"ann"}`},
		"every element":         {[]string{"--set", `.a[]=0`}, `{"a":[1,2]}`, `{"a":[0,0]}`},
		"take away":             {[]string{"--delete", ".metadata"}, "", `{"user_id":"ann"}`},
		"take away nothing":     {[]string{"--delete", ".nothing.there"}, `{"a":1}`, `{"a":1}`},
		"jq":                    {[]string{"--edit", ".metadata = {seats: (.metadata.seats | tonumber)}"}, "", `{"metadata":{"seats":12},"user_id":"ann"}`},
		"in the order given":    {[]string{"--set", ".a=1", "--edit", ".a += 1", "--set", ".b=3", "--delete", ".c"}, `{"c":0}`, `{"a":2,"b":3}`},
		"not an object":         {[]string{"--edit", ".user_id"}, "", "--edit produces a string, must produce an object"},
		"nothing at all":        {[]string{"--edit", "empty"}, "", "--edit produces 0 events, must produce one"},
		"two":                   {[]string{"--edit", "., ."}, "", "--edit produces 2 events, must produce one"},
		"an error":              {[]string{"--edit", ".user_id | tonumber"}, "", "--edit fails on it"},
		"a path into a string":  {[]string{"--set", ".user_id.x=1"}, "", "--set fails on it"},
		"not JSON":              {[]string{"--set", ".x=1"}, "{", "is not JSON: export it, correct it by hand, and publish the result"},
		"not UTF-8":             {[]string{"--set", ".x=1"}, "{\"a\":\"\xff\"}", "has text that is not UTF-8"},
		"half a pair":           {[]string{"--set", ".x=1"}, `{"a":"\ud83d"}`, "has text that is not UTF-8"},
		"made UTF-8":            {[]string{"--replace-invalid"}, "{\"n\":1.50, \"a\":\"\xff\\ud83d\",\"a\":1}", `{"n":1.50, "a":"��","a":1}`},
		"made UTF-8, and set":   {[]string{"--set", ".x=1", "--replace-invalid"}, "{\"b\":1,\"a\":\"\xff\"}", `{"a":"�","b":1,"x":1}`},
		"as it was":             {[]string{"--set", ".a=1", "--edit", "."}, `{"b":1.50, "a":1}`, `{"b":1.50, "a":1}`},
		"as it was in the end":  {[]string{"--set", ".x=1", "--delete", ".x"}, `{"b":[{}], "a":1}`, `{"b":[{}], "a":1}`},
		"another writing":       {[]string{"--set", ".b=1.5"}, `{"b":1.50, "a":1}`, `{"a":1,"b":1.5}`},
		"only made UTF-8":       {[]string{"--replace-invalid", "--edit", "."}, "{\"b\":1, \"a\":\"\xff\"}", `{"b":1, "a":"�"}`},
		"nothing to replace":    {[]string{"--replace-invalid"}, `{"b":1, "a":"é"}`, `{"b":1, "a":"é"}`},
		"an unknown user":       {[]string{"--replace-invalid"}, `{"user_id":"a\ud83d"}`, "its user_id is not UTF-8, so its user is unknown: --set user_id=ID and --force name one"},
		"a user that is named":  {[]string{"--replace-invalid", "--set", "user_id=ann"}, `{"user_id":"a\ud83d"}`, `{"user_id":"ann"}`},
		"a name twice":          {[]string{"--set", ".x=1"}, `{"a":1,"a":2}`, "has a duplicate name: export it, correct it by hand, and publish the result"},
	} {
		body := test.body
		if body == "" {
			body = event
		}
		r, err := editsOf(t, test.args...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for range 2 { // the same again
			got, err := r.apply(t.Context(), []byte(body))
			if err == nil && string(got) != test.want || err != nil && err.Error() != test.want {
				t.Errorf("%s: %s, %v; want %s", name, got, err, test.want)
			}
		}
	}
}

func TestBadRepairs(t *testing.T) {
	t.Parallel()
	for flag, texts := range map[string][]string{
		"set":    {"", "plan", "plan=pro", ".metadata.plan", "=pro", ".=1", ".a|.b=1", ".a==1", `.a[=1`, "..=1", "$x=1", `"a"=1`, "(.a)=1", "metadata", "metadatax=1", "metadata == 1", "metadata|.a=1", "user_id + 1=2"},
		"delete": {"", "plan", ".", "..", ".a | .b", ".a, .b", ".a[", ".a = 1", "plan", "metadata x", "metadata, company", "metadata.", "company | .id"},
		"edit":   {"", ".a +", "nothere", "$ENV2"},
	} {
		for _, text := range texts {
			if _, err := editsOf(t, "--"+flag, text); err == nil {
				t.Errorf("--%s %q is taken", flag, text)
			}
		}
	}
}

// An edit that asks for the time makes the same event whenever it is asked.
func TestRepairStandsStill(t *testing.T) {
	t.Parallel()
	r, err := editsOf(t, "--edit", ".at = now")
	if err != nil {
		t.Fatal(err)
	}
	first, err := r.apply(t.Context(), []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 100*time.Microsecond; { // the clock goes on
		if again, err := r.apply(t.Context(), []byte("{}")); err != nil || !bytes.Equal(again, first) {
			t.Fatalf("%s, then %s, %v", first, again, err)
		}
	}
}

func TestDifferences(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ before, after, want, masked string }{
		"the same":        {`{"a":1,"b":{"c":[1,{"d":2}]}}`, `{"b":{"c":[1,{"d":2}]},"a":1}`, "", ""},
		"all three":       {`{"a":1,"b":"x","c":true}`, `{"a":2,"c":true,"d":null}`, `~ .a: 1 -> 2|- .b: "x"|+ .d: null`, `~ .a: <number> -> <number>|- .b: <string, 1 character>|+ .d: null`},
		"deep":            {`{"a":{"b":{"c":1}}}`, `{"a":{"b":{"c":"1"}}}`, `~ .a.b.c: 1 -> "1"`, `~ .a.b.c: <number> -> <string, 1 character>`},
		"odd names":       {`{"a b":{"c":1},"me@x.org":1}`, `{"a b":{"c":2}}`, `~ ["a b"].c: 1 -> 2|- ["me@x.org"]: 1`, `~ ["a b"].c: <number> -> <number>|- ["***"]: <number>`},
		"arrays":          {`{"a":[1,2,3]}`, `{"a":[1,9]}`, `~ .a[1]: 2 -> 9|- .a[2]: 3`, `~ .a[1]: <number> -> <number>|- .a[2]: <number>`},
		"another writing": {`{"a":1.50}`, `{"a":1.5}`, "~ .a: 1.50 -> 1.5", "~ .a: <number> -> <number>"},
		"kinds":           {`{"a":{"x":1}}`, `{"a":["x"]}`, `~ .a: {"x":1} -> ["x"]`, `~ .a: {"x":"<number>"} -> ["<string, 1 character>"]`},
		"all of it":       {`1`, `{}`, `~ .: 1 -> {}`, `~ .: <number> -> {}`},
		"hostile":         {`{}`, `{"\u001b[2J":"\u202e\u0007"}`, `+ ["\u001b[2J"]: "\u202e\u0007"`, `+ ["\u001b[2J"]: <string, 2 characters>`},
		"new objects":     {`{"b":{"x":1,"y":{}}}`, `{"a":{"x":{"y":2}}}`, `+ .a.x.y: 2|- .b.x: 1|- .b.y: {}`, `+ .a.x.y: <number>|- .b.x: <number>|- .b.y: {}`},
		"the user":        {`{"user_id":42}`, `{"user_id":"42"}`, `~ .user_id: 42 -> "42"`, `~ .user_id: 42 -> "42"`},
		"no user yet":     {`{"user_id":true}`, `{"user_id":"a\u0000\\"}`, `~ .user_id: true -> "a\u0000\\"`, `~ .user_id: <boolean> -> "a\u0000\\"`},
		"quotes":          {`{"a\"b":"c\"d\\e\u00e9"}`, `{}`, `- ["a\"b"]: "c\"d\\eé"`, `- ["a\"b"]: <string, 6 characters>`},
	} {
		before, err := decodeJSON([]byte(test.before))
		after, errAfter := decodeJSON([]byte(test.after))
		if err != nil || errAfter != nil {
			t.Fatal(err, errAfter)
		}
		for reveal, want := range map[bool]string{true: test.want, false: test.masked} {
			m := newMask(reveal, false)
			var got []string
			for _, d := range m.differences(before, after) {
				got = append(got, d.describe(m))
			}
			if strings.Join(got, "|") != want {
				t.Errorf("%s, reveal %v:\n%s\n%s", name, reveal, strings.Join(got, "|"), want)
			}
		}
	}
}

// A change of a property that a newer event has set has no effect, wherever in the property it is.
func TestStays(t *testing.T) {
	t.Parallel()
	before, err := decodeJSON([]byte(`{"user_id":"ann","metadata":{"a/b":1,"c":{"d":1},"e":1,"f":1},"company":{"company_id":"x","name":"X","plan":"p"}}`))
	after, errAfter := decodeJSON([]byte(`{"user_id":"ann","metadata":{"a/b":2,"c":{"d":2},"e":2},"company":{"company_id":"y","name":"Y","plan":"q"}}`))
	if err != nil || errAfter != nil {
		t.Fatal(err, errAfter)
	}
	newer := []deadletter.PropertyStanding{
		{Path: "/metadata/a~1b", Superseded: true}, {Path: "/metadata/c", Superseded: true}, {Path: "/metadata/e"}, {Path: "/metadata/f", Superseded: true},
		{Path: "/company", Superseded: true}, {Path: "/company/y/name", Superseded: true}, {Path: "/company/y/plan"},
	}
	var got []string
	for _, d := range newMask(false, false).differences(before, after) {
		if d.stays(newer) {
			got = append(got, d.path)
		}
	}
	if want := `.company.company_id .company.name .metadata["a/b"] .metadata.c.d`; strings.Join(got, " ") != want {
		t.Errorf("stay: %s, want %s", got, want)
	}
}

// What was given on the command line is no secret of a user's.
func TestLiteralsAreShown(t *testing.T) {
	t.Parallel()
	r, err := editsOf(t, "--set", ".metadata.plan=pro")
	if err != nil {
		t.Fatal(err)
	}
	m := newMask(false, false)
	m.literals = r.literals
	d := difference{"/metadata/plan", ".metadata.plan", "gold", "pro", true, true}
	if got := d.describe(m); got != `~ .metadata.plan: <string, 4 characters> -> "pro"` {
		t.Error(got)
	}
}

// What the history keeps of an expression has no values in it, and is an expression of the same form.
func TestWithoutValues(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`.metadata.plan`: `.metadata.plan`,
		`.event.metadata.email == "ann@example.com"`:            `.event.metadata.email == "…"`,
		`.event.metadata.phone == 4912345 or .a.b[3] == -1`:     `.event.metadata.phone == … or .a.b[…] == -…`,
		`.metadata["Ann Smith"]."ann" | test("^ann"; "i")`:      `.metadata["…"]."…" | test("…"; "…")`,
		`"hello \(.metadata.name + "ann") you" # ann`:           `"…\(.metadata.name + "…")…"`,
		`.metadata = {plan: "pro", "ann": [1, null, true]}`:     `.metadata = { plan: "…", "…": […, null, true] }`,
		`if .user_id == "ann" then 1 elif . then 2 else "" end`: `if .user_id == "…" then … elif . then … else "" end`,
		`reduce .a[] as {b: $x} (0; . + $x) | @base64 "ann"`:    `reduce .a[] as {b: $x} (…; . + $x) | @base64 "…"`,
		`def f: "ann"; try f catch "bob"`:                       `def f: "…"; try f catch "…"`,
	} {
		if got := withoutValues(text); got != want {
			t.Errorf("%s\nis kept as\n%s, want\n%s", text, got, want)
		}
	}
	cmd := &cobra.Command{}
	r := newEdits(cmd)
	if err := cmd.ParseFlags([]string{"--set", ".metadata.email=ann@example.com", "--delete", ".a[7]", "--edit", `.b = "ann"`}); err != nil {
		t.Fatal(err)
	}
	if got, want := r.String(), `--set .metadata.email=… --delete .a[…] --edit .b = "…"`; got != want {
		t.Errorf("the edit is kept as %s, want %s", got, want)
	}
}
