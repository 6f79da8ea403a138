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

// What is read of an answer. The status decides; the rest is a courtesy that must
// not cost more than it is worth.
const (
	maxErrorBytes = 64 << 10  // of a refusal, to learn its code and message
	maxDrainBytes = 256 << 10 // so that the connection can be used again
	successGrace  = 250 * time.Millisecond
	refusalGrace  = 2 * time.Second

	maxCodeRunes    = 64
	maxMessageRunes = 256
	maxRetryAfter   = 15 * time.Minute
)

func isSuccess(status int) bool { return status >= 200 && status <= 299 }

// discard reads the rest of an accepted call's answer. If it does not end soon, the
// connection is given up instead.
func discard(resp *http.Response) {
	if resp.Body == http.NoBody {
		return
	}
	defer closeAfter(resp.Body, successGrace)()
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrainBytes)
}

// closeAfter closes body when the grace is over or when the returned function is
// called. A Read under way then fails, and so does the connection unless body was
// read to its end.
func closeAfter(body io.Closer, grace time.Duration) func() {
	timer := time.AfterFunc(grace, func() { _ = body.Close() })
	return func() {
		timer.Stop()
		_ = body.Close()
	}
}

// refusal reads an answer that is not a success.
func refusal(resp *http.Response, key Key) *Failure {
	defer closeAfter(resp.Body, refusalGrace)()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrainBytes-maxErrorBytes)
	code, message := parseErrorBody(body)
	return &Failure{
		Status:     resp.StatusCode,
		Code:       cleanAnswer(code, key, maxCodeRunes),
		Message:    cleanAnswer(message, key, maxMessageRunes),
		RequestID:  cleanAnswer(resp.Header.Get("X-Request-Id"), key, maxCodeRunes),
		RetryAfter: retryAfter(resp.Header, time.Now()),
		Sent:       true,
	}
}

// cleanAnswer strips the key before it cuts, so that no part of it is left.
func cleanAnswer(text string, key Key, limit int) string {
	return cleanText(strings.ReplaceAll(text, key.reveal(), redacted), limit)
}

// looseString is a JSON string, or a number as it was written; anything else is "".
type looseString string

func (s *looseString) UnmarshalJSON(value []byte) error {
	switch {
	case value[0] == '"':
		return json.Unmarshal(value, (*string)(s))
	case value[0] == '-' || value[0] >= '0' && value[0] <= '9':
		*s = looseString(value)
	}
	return nil
}

// parseErrorBody reads the documented error body,
// {"errors":[{"details","error","error_code","message"}]}. What a proxy or a load
// balancer answers instead is not worth quoting.
func parseErrorBody(body []byte) (code, message string) {
	if len(bytes.TrimSpace(body)) == 0 {
		return "", ""
	}
	var answer struct {
		Errors []struct {
			Details, Error, Message looseString
			Code                    looseString `json:"error_code"`
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

// retryAfter reads Retry-After: seconds, or a date, which is taken relative to the
// answer's own Date, as the clock it was made with.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseUint(value, 10, 64)
		if err != nil || seconds > uint64(maxRetryAfter/time.Second) {
			return maxRetryAfter // it overflows, so it is long
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
