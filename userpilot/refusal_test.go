package userpilot

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, test := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"1", "", time.Second},
		{" 30 ", "", 30 * time.Second},
		{"900", "", 15 * time.Minute},
		{"901", "", 15 * time.Minute},
		{"99999999999999999999999", "", 15 * time.Minute},
		{"-1", "", 0},
		{"-1.5", "", 0},
		{"1.0", "", time.Second},
		{"1.5", "", 2 * time.Second},
		{"0.001", "", time.Second},
		{".5", "", time.Second},
		{"899.5", "", 15 * time.Minute},
		{"900.5", "", 15 * time.Minute},
		{strings.Repeat("9", 400), "", 15 * time.Minute},
		{"0." + strings.Repeat("0", 400) + "1", "", 0},
		{"30s", "", 30 * time.Second},
		{"\t30 s ", "", 30 * time.Second},
		{".", "", 0},
		{"1.2.3", "", 0},
		{"s", "", 0},
		{"1e3", "", 0},
		{"0x10", "", 0},
		{"Inf", "", 0},
		{"NaN", "", 0},
		{"100ms", "", 0},
		{"1m", "", 0},
		{"soon", "", 0},
		{"Friday, 02-Jan-26 03:05:05 GMT", "", time.Minute}, // RFC 850
		{"Fri Jan  2 03:05:05 2026", "", time.Minute},       // asctime
		{"Fri, 02 Jan 2026 04:05:05 +0100", "", time.Minute},
		{"2026-01-02T03:05:05Z", "", time.Minute},
		{" " + at(time.Minute) + " ", "", time.Minute},
		{"Fri, 02 Jan 2026 03:05:05", "", 0},
		{at(time.Minute), "", time.Minute},
		{at(time.Hour), "", 15 * time.Minute},
		{at(-time.Minute), "", 0},
		{at(time.Hour), at(time.Hour - 10*time.Second), 10 * time.Second}, // their clock is ahead
		{at(-time.Hour), at(-time.Hour - 10*time.Second), 10 * time.Second},
		{at(time.Minute), "yesterday", time.Minute},
		{"5", at(time.Hour), 5 * time.Second},
	} {
		header := http.Header{}
		header.Set("Retry-After", test.value)
		header.Set("Date", test.date)
		if got := retryAfter(header, now); got != test.want {
			t.Errorf("Retry-After %q, Date %q: %v, want %v", test.value, test.date, got, test.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120", "")
	f.Add("Fri, 02 Jan 2026 03:04:05 GMT", "Fri, 02 Jan 2026 03:04:00 GMT")
	f.Add("Friday, 02-Jan-26 03:04:05 GMT", "x")
	f.Fuzz(func(t *testing.T, value, date string) {
		d := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, time.Unix(1e9, 0))
		if d < 0 || d > maxRetryAfter {
			t.Errorf("%v", d)
		}
	})
}

// What others answer, and what is kept of it.
func TestWords(t *testing.T) {
	t.Parallel()
	const noJSON, noWords = "the answer is not JSON", "the answer is not the documented error"
	for _, test := range []struct{ name, body, code, message string }{
		{"documented", `{"errors":[{"details":"d","error":"e","error_code":"c","message":"m"}]}`, "c", "m"},
		{"two documented", `{"errors":[{"error_code":"c1","message":"m1"},{"error_code":"c2","message":"m2"}]}`, "c1", "m1, m2"},
		{"a message", `{"message":"m"}`, "", "m"},
		{"a message and a status", `{"timestamp":1,"status":400,"error":"Bad Request","message":"m","path":"/v1/identify"}`, "", "m"},
		{"messages", `{"statusCode":400,"message":["m1","m2"],"error":"Bad Request"}`, "", "m1, m2"},
		{"as a gateway writes it", `{"Message":"m","__type":"x"}`, "x", "m"},
		{"an error", `{"error":"e"}`, "", "e"},
		{"an error and its description", `{"error":"invalid_request","error_description":"d"}`, "", "invalid_request: d"},
		{"an error object", `{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}`, "400", "m"},
		{"an error object with codes", `{"error":{"type":"t","code":"c","message":"m","param":null}}`, "c", "m"},
		{"camel case", `{"errorCode":"c","errorMessage":"m"}`, "c", "m"},
		{"errors in a text", `{"errors":"e"}`, "", "e"},
		{"errors in texts", `{"errors":["e1","e2","e1"]}`, "", "e1, e2"},
		{"errors in one object", `{"errors":{"detail":"Not Found"}}`, "", "Not Found"},
		{"fields", `{"errors":{"email":["is invalid","is taken"],"plan":"is unknown"}}`, "", "email: is invalid, is taken; plan: is unknown"},
		{"fields with our names", `{"errors":{"title":["is blank"],"message":["is long"],"code":["is odd"]}}`, "", "title: is blank; message: is long; code: is odd"},
		{"fields within", `{"errors":{"company":{"id":["is blank"]}}}`, "", "company: id: is blank"},
		{"fields that echo", `{"errors":{"input":{"user_id":"u","type":"sarah","code":"sarah"}}}`, "", "input: user_id: u"},
		{"a message and fields", `{"message":"m","errors":{"email":["is invalid"]}}`, "", "m; email: is invalid"},
		{"a message twice", `{"message":"m","errors":[{"message":"m"}]}`, "", "m"},
		{"a field and a message", `{"errors":[{"field":"email","message":"is invalid"},{"field":"plan","message":"is unknown"}]}`, "", "email: is invalid, plan: is unknown"},
		{"fields and no message", `{"errors":[{"resource":"user","field":"email","code":"missing"}]}`, "missing", "resource: user"},
		{"places", `{"detail":[{"loc":["body","user_id"],"msg":"field required","type":"missing"}]}`, "missing", "field required"},
		{"titles", `{"errors":[{"status":"422","source":{"pointer":"/x"},"title":"t","detail":"d"}]}`, "", "t: d"},
		{"a problem", `{"type":"https://a.example/p","title":"t","status":422,"detail":"d","instance":"/x"}`, "https://a.example/p", "t: d"},
		{"a problem without a type", `{"type":"about:blank","title":"t"}`, "", "t"},
		{"a description", `{"title":"t","description":"d"}`, "", "t: d"},
		{"a list", `[{"message":"m"},"n"]`, "", "m, n"},
		{"a text", `"m"`, "", "m"},
		{"a number", `{"error_code":4001,"message":42}`, "4001", "42"},
		{"after a byte order mark", "\xef\xbb\xbf" + `{"message":"m"}`, "", "m"},
		{"twice", `{"message":"m","message":"n"}`, "", "m"},
		{"as HTML", `{"message":" <html>x</html>","error":"e"}`, "", "e"},
		{"nothing", "", "", ""},
		{"blanks", "\r\n ", "", ""},
		{"empty", `{"message":"","errors":[]}`, "", noWords},
		{"neither", `{"message":null,"error":true,"data":{"message":"not one"},"email":["a"]}`, "", noWords},
		{"deeper than is read", `{"errors":[[[[[[["m"]]]]]]]}`, "", noWords},
		{"too deep", strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), "", noJSON},
		{"more than is shown", `{"errors":["1","2","3","4","5","6","7","8","9"]}`, "", "1, 2, 3, 4, 5, 6, 7, 8"},
		{"plain text", "no user_id\n", "", "no user_id\n"},
		{"plain text that begins as JSON", "[error] no user_id", "", "[error] no user_id"},
		{"a page", "<html>x</html>", "", noJSON},
		{"text with a page", "error: <html>x</html>", "", noJSON},
		{"long text", strings.Repeat("x", 1025), "", noJSON},
		{"no text", "\xff\xfe", "", noJSON},
	} {
		code, message, _ := readWords([]byte(test.body), "text/plain; charset=utf-8", true)
		if code != test.code || message != test.message {
			t.Errorf("%s: code %q, message %q, want %q and %q", test.name, code, message, test.code, test.message)
		}
	}
	for _, media := range []string{"text/html", "application/json", "application/octet-stream"} {
		if _, message, _ := readWords([]byte("no user_id"), media, true); message != noJSON {
			t.Errorf("text as %s: %q", media, message)
		}
	}
	cut := `{"error_code":"c","message":"m","errors":[{"message":"n"},{"message":"` + strings.Repeat("x", 1000)
	if code, message, fromAPI := readWords([]byte(cut), "", false); code != "c" || message != "m; n" || !fromAPI {
		t.Errorf("longer than is read: %q, %q, %t", code, message, fromAPI)
	}
}

func FuzzWords(f *testing.F) {
	for _, body := range []string{
		`{"errors":[{"details":"d","error":"e","error_code":"c","message":"m"}]}`,
		`{"errors":[{"error_code":1e400,"message":"a\u0000b\nsecret"}]}`,
		`{"errors":{"email":["is invalid"],"company":{"id":["sec\u0072et"]}},"title":"t","detail":"d"}`,
		`[["a"],{"field":"f","msg":"<html>"},`, "\xef\xbb\xbf{}", "<html>", "no secret",
	} {
		f.Add([]byte(body), "text/plain", true)
		f.Add([]byte(body), "", false)
	}
	key, _ := NewKey("secret")
	f.Fuzz(func(t *testing.T, body []byte, contentType string, whole bool) {
		code, message, fromAPI := readWords(body, contentType, whole)
		if fromAPI && whole && !json.Valid(bytes.ToValidUTF8(trimStart(body), nil)) {
			t.Errorf("%q is not JSON", body)
		}
		if isMarkup(trimStart([]byte(message))) {
			t.Errorf("quotes HTML: %q", message)
		}
		for _, text := range []string{cleanAnswer(code, key, 64), cleanAnswer(message, key, 256)} {
			if utf8.RuneCountInString(text) > 256 || !utf8.ValidString(text) || strings.Contains(text, "secret") ||
				strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("not clean: %q", text)
			}
		}
		text := (&Error{Status: 400, Code: code, Message: message}).Error()
		if !isIdentifier(code) && strings.TrimSuffix(text, " without JSON") != "identify: answered 400" {
			t.Errorf("the text has more than a code: %q", text)
		}
	})
}

// However a body is built, reading it costs little: 64 KiB, in one pass.
func BenchmarkWords(b *testing.B) {
	for name, body := range map[string]string{
		"deep":   strings.Repeat(`{"errors":[`, maxErrorBytes/11),
		"wide":   `{"errors":[` + strings.Repeat(`{"message":"a"},`, maxErrorBytes/16),
		"fields": `{"errors":{` + strings.Repeat(`"a":["b"],`, maxErrorBytes/10),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				readWords([]byte(body), "", false)
			}
		})
	}
}
