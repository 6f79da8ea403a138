package userpilot

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// How much of an answer the client reads. The status decides; the rest must not cost
// more than it is worth.
const (
	maxErrorBytes = 64 << 10  // of a refusal, for its code and message
	maxDrainBytes = 256 << 10 // so that the connection can be reused
	successGrace  = 250 * time.Millisecond
	refusalGrace  = 2 * time.Second

	maxCodeRunes    = 64
	maxMessageRunes = 256
	maxRetryAfter   = 15 * time.Minute
)

func isSuccess(status int) bool { return status >= 200 && status <= 299 }

// discard reads and drops the answer to an accepted call. If the answer does not end
// soon, discard closes it, which costs the connection.
func discard(resp *http.Response) {
	if resp.Body == http.NoBody {
		return
	}
	defer closeAfter(resp.Body, successGrace)()
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrainBytes)
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
	code, message := parseErrorBody(body)
	return &Error{
		Status:     resp.StatusCode,
		Code:       cleanAnswer(code, key, maxCodeRunes),
		Message:    cleanAnswer(message, key, maxMessageRunes),
		RequestID:  cleanAnswer(resp.Header.Get("X-Request-Id"), key, maxCodeRunes),
		RetryAfter: retryAfter(resp.Header, time.Now()),
		Sent:       true,
	}
}

// cleanAnswer cleans and cuts text from an answer. It redacts the key before it cuts,
// so that no part of the key is left.
func cleanAnswer(text string, key Key, limit int) string {
	return cleanText(strings.ReplaceAll(text, key.reveal(), redacted), limit)
}

// stringOrNumber is a JSON string, or a number as it was written; "" for anything else.
type stringOrNumber string

func (s *stringOrNumber) UnmarshalJSON(value []byte) error {
	switch {
	case value[0] == '"':
		return json.Unmarshal(value, (*string)(s))
	case value[0] == '-' || value[0] >= '0' && value[0] <= '9':
		*s = stringOrNumber(value)
	}
	return nil
}

// parseErrorBody parses the documented error body,
// {"errors":[{"details","error","error_code","message"}]}. It does not quote other
// bodies, such as a proxy's or a load balancer's.
func parseErrorBody(body []byte) (code, message string) {
	if len(bytes.TrimSpace(body)) == 0 {
		return "", ""
	}
	var answer struct {
		Errors []struct {
			Details, Error, Message stringOrNumber
			Code                    stringOrNumber `json:"error_code"`
		}
	}
	if !json.Valid(body) {
		return "", "the answer is not JSON"
	}
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Errors) == 0 {
		return "", "the answer is not the documented error"
	}
	first := answer.Errors[0]
	return string(first.Code), string(cmp.Or(first.Message, first.Error, first.Details))
}

// retryAfter parses Retry-After: seconds, or a date. A date is relative to the answer's
// own Date header, because both come from the same clock.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseUint(value, 10, 64)
		if err != nil || seconds > uint64(maxRetryAfter/time.Second) {
			return maxRetryAfter // a number that overflows is long too
		}
		return time.Duration(seconds) * time.Second
	}
	until, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		now = date
	}
	return min(max(until.Sub(now), 0), maxRetryAfter)
}
