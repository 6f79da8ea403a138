package userpilot

import (
	"bytes"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How much of an answer the client reads. The status decides; the rest must not cost
// more than it is worth.
const (
	maxErrorBytes = 64 << 10  // of a refusal, for its code and message
	maxPageBytes  = 1 << 10   // of a success, to recognize a web page
	maxDrainBytes = 256 << 10 // so that the connection can be reused
	pageGrace     = 2 * time.Second
	successGrace  = 250 * time.Millisecond
	refusalGrace  = 2 * time.Second

	maxCodeRunes    = 64
	maxMessageRunes = 256
	maxRetryAfter   = 15 * time.Minute
)

func isSuccess(status int) bool { return status >= 200 && status <= 299 }

// accepted reads the answer to a call with status 2xx. It returns an error if a web page came
// instead of Userpilot's answer. If the answer does not end soon, accepted closes it, which costs
// the connection.
func accepted(resp *http.Response) error {
	if resp.Body == http.NoBody {
		return nil
	}
	timer := time.AfterFunc(pageGrace, func() { _ = resp.Body.Close() })
	defer func() {
		timer.Stop()
		_ = resp.Body.Close()
	}()
	page := beginsAsPage(resp.Body)
	timer.Reset(successGrace) // from here on only the connection is at stake
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrainBytes)
	if page {
		return &Error{Status: resp.StatusCode, Sent: true}
	}
	return nil
}

// beginsAsPage reads as much of a body as it takes to tell whether it begins as HTML or XML, after
// blanks and a byte order mark. The Content-Type is no evidence: an empty text/html is common.
func beginsAsPage(body io.Reader) bool {
	var start [maxPageBytes]byte
	for n := 0; n < len(start); {
		more, err := body.Read(start[n:])
		n += more
		if text := trimStart(start[:n]); err != nil || !isUndecided(string(text)) {
			return isMarkup(text)
		}
	}
	return false
}

// isUndecided reports whether more must be read to tell what a body is that begins so. A byte order mark
// may come in pieces, too.
func isUndecided(text string) bool {
	switch text {
	case "", "<", "\xff", "\xfe", "\x1f", "\xef", "\xef\xbb":
		return true
	}
	return false
}

// isMarkup reports whether text begins with a tag, a comment or a declaration, or is compressed or in
// an encoding that hides that.
func isMarkup(text []byte) bool {
	if len(text) < 2 {
		return false
	}
	if slices.Contains([]string{"\xff\xfe", "\xfe\xff", "\x1f\x8b"}, string(text[:2])) {
		return true // UTF-16, gzip: neither was asked for
	}
	next := text[1] | 0x20
	return text[0] == '<' && (text[1] == '!' || text[1] == '?' || text[1] == '/' || next >= 'a' && next <= 'z')
}

const blanks = " \t\r\n\f\v"

// trimStart removes blanks and byte order marks.
func trimStart(body []byte) []byte {
	for {
		text, marked := bytes.CutPrefix(bytes.TrimLeft(body, blanks), []byte("\xef\xbb\xbf"))
		if !marked {
			return text
		}
		body = text
	}
}

// closeAfter closes body when the grace is over or when the returned function is
// called. A pending Read then fails, and the connection is lost unless body was read to
// its end.
func closeAfter(body io.Closer, grace time.Duration) func() {
	timer := time.AfterFunc(grace, func() { _ = body.Close() })
	return func() {
		timer.Stop()
		_ = body.Close()
	}
}

// refusal reads an answer that is not a 2xx.
func refusal(resp *http.Response, key Key) *Error {
	defer closeAfter(resp.Body, refusalGrace)()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrainBytes-maxErrorBytes)
	code, message, fromAPI := readWords(body, resp.Header.Get("Content-Type"), len(body) < maxErrorBytes)
	f := &Error{
		Status:     resp.StatusCode,
		Code:       cleanAnswer(code, key, maxCodeRunes),
		Message:    cleanAnswer(message, key, maxMessageRunes),
		RequestID:  cleanAnswer(resp.Header.Get("X-Request-Id"), key, maxCodeRunes),
		RetryAfter: retryAfter(resp.Header, time.Now()),
		FromAPI:    fromAPI,
		Sent:       true,
	}
	if f.Status == http.StatusBadRequest && !fromAPI && expectsTLS(body) {
		f.Err = &noAnswer{cause: CauseTLS, text: "the server expects TLS and not plain HTTP"}
	}
	return f
}

// expectsTLS reports whether a refusal is that of a port for TLS which was spoken to in plain HTTP: of
// nginx, Apache or Go.
func expectsTLS(body []byte) bool {
	return slices.ContainsFunc([]string{"sent to HTTPS port", "plain HTTP to an SSL-enabled server port", "HTTP request to an HTTPS server"},
		func(words string) bool { return bytes.Contains(body, []byte(words)) })
}

// cleanAnswer cleans and cuts text from an answer. It redacts the key before it cuts,
// so that no part of the key is left.
func cleanAnswer(text string, key Key, limit int) string {
	return cleanText(strings.ReplaceAll(text, key.reveal(), redacted), limit)
}

// retryAfter parses Retry-After: seconds, or a date. A date is relative to the answer's own Date
// header, because both come from the same clock. Beyond the standard it takes what is unambiguous:
// a fraction, which it rounds up, a unit ("30s"), and dates with another zone.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	number := strings.TrimSpace(strings.TrimSuffix(value, "s"))
	if strings.Trim(number, "0123456789.") == "" {
		seconds, _ := strconv.ParseFloat(number, 64) // what overflows is infinite, what is no number 0
		return time.Duration(min(math.Ceil(seconds), maxRetryAfter.Seconds())) * time.Second
	}
	until, err := parseDate(value)
	if err != nil {
		return 0
	}
	if date, err := parseDate(header.Get("Date")); err == nil {
		now = date
	}
	return min(max(until.Sub(now), 0), maxRetryAfter)
}

// parseDate parses a date in the three forms of HTTP, or with a zone.
func parseDate(value string) (date time.Time, err error) {
	if date, err = http.ParseTime(value); err == nil {
		return date, nil
	}
	for _, layout := range []string{time.RFC1123Z, time.RFC3339} {
		if date, err = time.Parse(layout, value); err == nil {
			return date, nil
		}
	}
	return date, err
}
