package inspector

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// maxListed bounds the number of values that a filter's text lists.
const maxListed = 20

// String returns the filter as text, as the audit trail records it. Users appear as a hash; of
// Match it says only that there is one.
func (f Filter) String() string {
	var words []string
	list := func(name string, values []string) {
		if len(values) == 0 {
			return
		}
		rest := ""
		if more := len(values) - maxListed; more > 0 {
			values, rest = values[:maxListed], fmt.Sprintf(" and %d more", more)
		}
		words = append(words, name+"="+strings.Join(values, ",")+rest)
	}
	list("group", f.Groups)
	list("reason", texts(f.Reasons, func(r deadletter.Reason) string { return string(r) }))
	list("status", texts(f.Statuses, strconv.Itoa))
	list("user", texts(f.Users, hashedUser))
	list("id", texts(f.IDs, func(id uint64) string { return strconv.FormatUint(id, 10) }))
	for _, bound := range []struct {
		name string
		time time.Time
	}{{"since", f.Since}, {"until", f.Until}} {
		if !bound.time.IsZero() {
			words = append(words, bound.name+"="+bound.time.UTC().Format(time.RFC3339))
		}
	}
	if f.Match != nil {
		words = append(words, "match")
	}
	if len(words) == 0 {
		return "all"
	}
	return strings.Join(words, " ")
}

func texts[T any](values []T, text func(T) string) []string {
	return slices.Collect(func(yield func(string) bool) {
		for _, v := range values {
			if !yield(text(v)) {
				return
			}
		}
	})
}

// hashedUser represents a user where personal data must not be stored.
func hashedUser(user string) string { return "sha256:" + jsapi.UserHash(user) }
