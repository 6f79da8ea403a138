package deadletter

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// The patterns are a contract: a change moves existing letters to other groups.
func TestPattern(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ text, want string }{
		{"", ""},
		{"metadata.plan is not allowed", "metadata.plan is not allowed"},

		// Texts of this program.
		{"user_id: is missing", "user_id: is missing"},
		{"body: is not JSON: it breaks after byte 17", "body: is not JSON: it breaks after byte …"},
		{"body: is larger than 524288 bytes", "body: is larger than … bytes"},
		{"company.id: is missing: a company needs an id or a company_id", "company.id: is missing: a company needs an id or a company_id"},
		{"identify: answered 422, code E12, request 3f-9", "identify: answered …, code …, request …"},
		{"identify: no answer: context deadline exceeded", "identify: no answer: context deadline exceeded"},
		{"identify: no answer: dial tcp 10.0.0.1:443: connect: connection refused", "identify: no answer: dial tcp …: connect: connection refused"},
		{"dial tcp: lookup analytex.userpilot.io on [fe80::1%eth0]:53: no such host", "dial tcp: lookup analytex.userpilot.io on […: no such host"},
		{"the worker panicked: runtime.boundsError", "the worker panicked: runtime.boundsError"},

		// Names of formats, which are no values.
		{"body: is not valid UTF-8", "body: is not valid UTF-8"},
		{"plan: UTF-8, or base64: no UTF-88 or utf-8.", "plan: UTF-8, or base64: no … or …."},
		{"phone must be in E.164 format (HTTP/1.1)", "phone must be in E.164 format (HTTP/1.1)"},

		// Quotes of all kinds.
		{`plan "pro" is unknown`, `plan "…" is unknown`},
		{`plan "" is unknown`, `plan "…" is unknown`},
		{`plan 'pro' is unknown`, `plan '…' is unknown`},
		{"plan `pro` is unknown", "plan `…` is unknown"},
		{"plan “pro” is unknown", "plan “…” is unknown"},
		{`plan="pro" is unknown`, `plan="…" is unknown`},
		{`"a \"nested\" one" is unknown`, `"…" is unknown`},
		{`"a 'nested' one" is unknown`, `"…" is unknown`},
		{`'O'Brien' is unknown`, `'…' is unknown`},
		{`'Ann's plan' is unknown`, `'…' is unknown`},
		{`O'Brien is unknown`, `O'Brien is unknown`},
		{`plan "pro, which is much too lo`, `plan "…`},
		{`doesn't, can't, we're, users' and the user's plan’s`, `doesn't, can't, we're, users' and the user's plan’s`},

		// Addresses.
		{"ann@example.com is taken", "… is taken"},
		{"to=ann@example.com.", "…."},
		{"<Ann.O'Brien+x=y|z@example.com>", "<…>"},
		{"to ann@例え.jp, bob@example.com", "to …"},
		{"mailto:ann@example.com?", "…?"},
		{"@ann is taken", "… is taken"},
		{"https://example.com is down", "https://example.com is down"},
		{"see https://docs.example.com/errors/ann?key=x#y.", "see https://docs.example.com/…."},
		{"see (https://docs.example.com/).", "see (https://docs.example.com/)."},
		{"Post https://10.0.0.1:443/v1: EOF", "Post https://…: EOF"},
		{"https://ann:secret@example.com/x is down", "https://… is down"},
		{"s3://bucket/name=ann is gone", "… is gone"},
		{"GET /v1/users/ann", "GET …"},

		// Numbers, times, ids.
		{"-5 is below 0", "… is below …"},
		{"$1,000.50 or 5% or 99th or ½ or ٣", "… or … or … or … or …"},
		{"at 2024-01-15T10:30:00.123+02:00!", "at …!"},
		{"at 2024-01-15 10:30:00", "at …"},
		{"cus_Ann.b7:x is unknown", "… is unknown"},
		{"6f1c1b0e-8a2e-4f0c-9d5e-0f2b7f9c1a2b is unknown", "… is unknown"},
		{"01HV5E3K7Q8Z9X2W4Y6T1R3P5M is unknown", "… is unknown"},
		{"QmFzZTY0IGlzIGZ1biE= is unknown", "… is unknown"},
		{"in (QmFzZTY0IGlzIGZ1biE==) and a1=b or a1==2 or a1===.", "in (…) and …=b or … or …===."},
		{"aQmFzZXTYOgIGlzIGZvbyE is unknown", "… is unknown"},
		{"ActiveRecordRecordInvalidException", "ActiveRecordRecordInvalidException"},
		{"metadata.subscriptionRenewalDate", "metadata.subscriptionRenewalDate"},
		{"contacts[17].email is missing", "contacts[…].email is missing"},

		// Lists are alike, however long.
		{"ids 1, 2 are gone", "ids … are gone"},
		{"ids 1, 2, 3 are gone", "ids … are gone"},
		{`"a", "b" and "c" are gone`, `"…" and "…" are gone`},
		{`{"a":1,"b":[2,3]} is refused`, `{"…"]} is refused`},
		{"5  of …, 8", "… of …"},
		{"  two   spaces  ", "two spaces"},
	} {
		if got := Pattern(test.text, ""); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.text, got, test.want)
		}
		if got := Pattern(test.want, ""); got != test.want {
			t.Errorf("of the pattern itself\n got %s\nwant %s", got, test.want)
		}
	}
}

// Each error of an invalid event is a sentence in its group, too.
func TestPatternOfInvalidEvents(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 20_000)
	var many strings.Builder
	for i := range 501 {
		fmt.Fprintf(&many, `,"p%d":1`, i)
	}
	var seen []string
	for _, test := range []struct{ body, want string }{
		{"", "body: is empty"},
		{"\xff", "body: is not valid UTF-8"},
		{`{"user_id":"\ud800"}`, "body: has half a surrogate pair after byte …"},
		{"{", "body: is not JSON: it ends too early, after byte …"},
		{"hello", "body: is not JSON: it breaks after byte …"},
		{`{"user_id":"u","a":` + deep, "body: is nested deeper than … levels"},
		{`{"user_id":"u","a":"` + strings.Repeat("x", userpilot.MaxEventBytes) + `"}`, "body: is larger than … bytes"},
		{"[]", "body: must be a JSON object"},
		{`{"user_id":"u"} x`, "body: has trailing data after byte …"},
		{`{}`, "user_id: is missing"},
		{`{"user_id":"u","user_id":"u"}`, "user_id: appears twice"},
		{`{"user_id":null}`, "user_id: is null"},
		{`{"user_id":""}`, "user_id: is empty"},
		{`{"user_id":7}`, "user_id: must be a string, not a number"},
		{`{"user_id":[]}`, "user_id: must be a string, not an array"},
		{`{"user_id":"u","company":7}`, "company: must be an object, not a number"},
		{`{"user_id":"u","company":{}}`, "company.id: is missing: a company needs an id or a company_id"},
		{`{"user_id":"u","metadata":true}`, "metadata: must be an object, not a boolean"},
		{`{"user_id":"u","metadata":{"a7":[]}}`, `metadata."…": must be a string, a number, a boolean or null, not an array`},
		{`{"user_id":"u","company":{"id":"c","x":{}}}`, `company."…": must be a string, a number, a boolean or null, not an object`},
		{`{"user_id":"u","company":{"id":"c","company_id":"c"}}`, "company: has both id and company_id"},
		{`{"user_id":"u","metadata":{` + many.String()[1:] + `}}`, "metadata: has more than … properties"},
		{`{"user_id":"u","ann@example.com":1}`, `"…": is not a member of an identify (user_id, metadata, company)`},
		{`{"user_id":"u","metadata":{},"metadata":{}}`, `"…": appears twice`},
		{`{"user_id":"u","metadata":{"a7":1,"a7":2}}`, `metadata."…": appears twice`},
		{`{"user_id":"u","metadata":{"` + strings.Repeat("x", 256) + `":1}}`, `metadata."…": has a name of more than … characters`},
		{`{"user_id":"u","metadata":{"a7":"` + strings.Repeat("x", 65_536) + `"}}`, `metadata."…": is longer than … characters`},
		{`{"user_id":" "}`, "user_id: is blank"},
		{`{"user_id":" 7"}`, "user_id: has blanks at its ends"},
		{`{"user_id":"undefined"}`, "user_id: is no id, but what a program writes where it has none"},
		{`{"user_id":"${id}"}`, "user_id: has the text of a template in it"},
		{`{"user_id":"=\"7\""}`, "user_id: is a spreadsheet's formula"},
		{`{"user_id":"u","company":{"id":"1.23457E+15"}}`, "company.id: is a number that a spreadsheet or a program has rounded"},
	} {
		event, err := userpilot.Parse([]byte(test.body))
		if err == nil {
			err = event.CheckStrict()
		}
		if err == nil {
			t.Errorf("%.100s is valid", test.body)
			continue
		}
		seen = append(seen, err.Error())
		if got := Pattern(err.Error(), event.UserID()); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", err, got, test.want)
		}
	}
	for _, file := range []string{"parse.go", "strict.go", "event.go"} {
		source, err := os.ReadFile("../../userpilot/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range regexp.MustCompile(`(?s)\b(?:invalid\(|return |Sprintf\().*?"((?:is|has|must|appears) [^"]*)"`).FindAllSubmatch(source, -1) {
			problem := regexp.MustCompile(`%[ds]`).ReplaceAllString(regexp.QuoteMeta(string(call[1])), ".*")
			if !slices.ContainsFunc(seen, regexp.MustCompile(": "+problem).MatchString) {
				t.Errorf("%s: no row for %q", file, call[1])
			}
		}
	}
}

// The user's id is blanked in all spellings.
func TestPatternOfAUser(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ text, user, want string }{
		{"ann is unknown", "ann", "… is unknown"},
		{"user ann: is unknown, ann", "ann", "user …: is unknown, …"},
		{"/users/ann/plan is unknown", "ann", "… is unknown"},
		{"annual plans, hannah, ann_x", "ann", "annual plans, hannah, ann_x"},
		{"annann ann", "ann", "annann …"},
		{"user Ann O'Brien is unknown", "Ann O'Brien", "user … is unknown"},
		{"user 名前 is unknown", "名前", "user … is unknown"},
		{"user_id is missing", "user", "user_id is missing"},
		{"- is unknown", "-", "… is unknown"},
		{"ann is unknown", "", "ann is unknown"},
		{"bob is unknown", "ann", "bob is unknown"},
	} {
		if got := Pattern(test.text, test.user); got != test.want {
			t.Errorf("%s of %s\n got %s\nwant %s", test.text, test.user, got, test.want)
		}
	}
}

// Ids of all kinds are distinguished from words, with very few exceptions.
func TestPatternOfIDs(t *testing.T) {
	t.Parallel()
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return b
	}
	for name, id := range map[string]func() string{
		"hex of 16":       func() string { return hex.EncodeToString(random(8)) },
		"base64 of 22":    func() string { return base64.RawURLEncoding.EncodeToString(random(16)) },
		"base64 of 43":    func() string { return base64.RawURLEncoding.EncodeToString(random(32)) },
		"random text":     rand.Text,
		"nuid":            func() string { return nuid.New().Next() }, // otherwise all would share one unlucky prefix
		"number of users": func() string { return fmt.Sprint(random(1)[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const ids = 20_000
			patterns := map[string]bool{}
			for range ids {
				patterns[Pattern("plan "+id()+" is unknown", "")] = true
			}
			if len(patterns) > ids/100 {
				t.Errorf("%d ids have %d patterns", ids, len(patterns))
			}
		})
	}
}

// terms are the words that keep their digits.
var terms = regexp.MustCompile(`UTF-8|UTF-16|ISO-?8601|RFC3339|E\.164|[bB]ase64|IPv[46]|OAuth2|SHA-256|HTTP/1\.1|HTTP/2`)

// No digit but those of terms survives in a pattern, and it is as clean as its error.
func FuzzPattern(f *testing.F) {
	for _, text := range []string{"plan 'pro' of ann@example.com is 5", "see https://x.y/z?a=1", `"a\"`, "½ ٣ @ @a …", "''", "x'x", "\\", "a://"} {
		f.Add(text, "ann")
	}
	f.Fuzz(func(t *testing.T, text, user string) {
		text = jsapi.Clean(text)
		got := Pattern(text, user)
		if strings.ContainsFunc(terms.ReplaceAllString(got, ""), unicode.IsNumber) || strings.Contains(got, "@") {
			t.Errorf("%q has the pattern %q", text, got)
		}
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) || len(got) > 4*len(text) {
			t.Errorf("%q has the pattern %q", text, got)
		}
		if user != "" && got == user && strings.Trim(user, "….:!?\"'`") != "" {
			t.Errorf("%q of %q has the pattern %q", text, user, got)
		}
	})
}

// Neither quoted text nor any part of an e-mail address survives.
func FuzzPatternHides(f *testing.F) {
	f.Add("secret", uint8(0))
	f.Add("two secrets", uint8(3))
	f.Add("o'secret=x", uint8(200))
	f.Add("`secret", uint8(255))
	quotes := []string{`""`, "''", "``", "“”"}
	frames := []string{"the plan %s is unknown", "%s", "plan=%s", "(%s), and", "it's plan: %s", "doesn't know the users' %s here"}
	f.Fuzz(func(t *testing.T, secret string, way uint8) {
		frame := frames[int(way)%len(frames)]
		pair := []rune(quotes[int(way)%len(quotes)])
		text := jsapi.Clean(secret)
		if way < 128 {
			text = strings.Map(func(r rune) rune {
				if r == '\\' || r == '\'' || r == pair[0] || r == pair[1] {
					return -1
				}
				return r
			}, text)
			text = string(pair[0]) + text + string(pair[1])
		} else {
			var local []rune
			for _, r := range text {
				between := len(local) > 0 && unicode.IsLetter(local[len(local)-1]) // as in O'Brien
				if r != ' ' && !isSpecial(r) && (closer(r) == 0 || r == '\'' && between) {
					local = append(local, r)
				}
			}
			text = string(local)
			text += "@mail.example"
		}
		got := Pattern(fmt.Sprintf(frame, text), "")
		for _, word := range strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) }) {
			if len(word) > 2 && strings.Contains(got, word) && !strings.Contains(frame, word) {
				t.Fatalf("%s shows %q in %s", fmt.Sprintf(frame, text), word, got)
			}
		}
	})
}

func BenchmarkPattern(b *testing.B) {
	b.ReportAllocs()
	l := &Letter{Death: Death{
		Reason: Rejected, Status: 422, User: "user-123456",
		Error: `metadata.plan: value "pro" of ann@example.com is not allowed after 17 seconds, see https://docs.example.com/errors/422`,
	}}
	for b.Loop() {
		l.Pattern()
	}
}
