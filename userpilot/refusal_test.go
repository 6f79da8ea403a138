package userpilot

import (
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
		{"1.5", "", 0},
		{"soon", "", 0},
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

func FuzzErrorBody(f *testing.F) {
	f.Add([]byte(`{"errors":[{"details":"d","error":"e","error_code":"c","message":"m"}]}`))
	f.Add([]byte(`{"errors":[{"error_code":1e400,"message":"a\u0000b\nsecret"}]}`))
	f.Add([]byte("<html>"))
	key, _ := NewKey("secret")
	f.Fuzz(func(t *testing.T, body []byte) {
		code, message := parseErrorBody(body)
		for _, text := range []string{cleanAnswer(code, key, 64), cleanAnswer(message, key, 256)} {
			if utf8.RuneCountInString(text) > 256 || !utf8.ValidString(text) || strings.Contains(text, "secret") ||
				strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("not clean: %q", text)
			}
		}
	})
}
