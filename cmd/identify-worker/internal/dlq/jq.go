package dlq

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"time"

	"github.com/itchyny/gojq"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/export"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// jq is a compiled expression. It cannot read files or the environment, and its now is constant,
// so that the same input always has the same results. It is safe for concurrent use.
type jq struct {
	code *gojq.Code
	now  float64
}

func compileJQ(text string, variables ...string) (*jq, error) {
	// As it stands, so that an error speaks of what was given.
	if _, err := gojq.Parse(text); err != nil {
		return nil, fmt.Errorf("must be a jq expression: %w", err)
	}
	query, err := gojq.Parse("def now: $__now; " + text)
	if err != nil {
		return nil, fmt.Errorf("must be a jq expression: %w", err)
	}
	code, err := gojq.Compile(query, gojq.WithVariables(append([]string{"$__now"}, variables...)))
	if err != nil {
		return nil, fmt.Errorf("must be a jq expression: %w", err)
	}
	return &jq{code, float64(time.Now().UnixMicro()) / 1e6}, nil
}

// run returns the results for one input. values are those of the expression's variables. ctx ends
// an expression that never does.
func (j *jq) run(ctx context.Context, input any, values ...any) (results []any, err error) {
	for i := j.code.RunWithContext(ctx, input, append([]any{j.now}, values...)...); ; {
		result, ok := i.Next()
		if !ok {
			return results, nil
		}
		if err, failed := result.(error); failed {
			return results, err
		}
		results = append(results, result)
	}
}

// withoutValues returns an expression as the history keeps it. The history lasts a year, in which
// a user may ask to be erased, so each string and number is replaced by …. Names of properties
// remain unless they are quoted.
func withoutValues(text string) string {
	query, err := gojq.Parse(text)
	if err != nil {
		return "…"
	}
	hideValues(reflect.ValueOf(query))
	return query.String()
}

// hideValues replaces the strings and numbers in all parts of an expression.
func hideValues(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			hideValues(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			hideValues(v.Index(i))
		}
	case reflect.Struct:
		for field, value := range v.Fields() {
			if isValue := field.Name == "Str" || field.Name == "Number"; isValue && value.Kind() == reflect.String && value.Len() > 0 {
				value.SetString("…")
			} else {
				hideValues(value)
			}
		}
	}
}

// decodeJSON reads one JSON value. It keeps numbers as they are written, and jq preserves them. Of
// duplicate names it keeps the last.
func decodeJSON(text []byte) (value any, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has data after its end")
	}
	return value, nil
}

// letterValue is the input of --match.
func letterValue(l *deadletter.Letter) map[string]any {
	event, _ := decodeJSON(l.Body) // null if it is not JSON
	return map[string]any{"headers": export.HeaderValues(l.Header), "event": event}
}

// matcher returns the filter that --match describes: a letter matches if the expression has a
// result that is neither false nor null. An error of jq may quote the event, so only --reveal
// shows it.
func (j *jq) matcher(ctx context.Context, reveal bool) func(*deadletter.Letter) (bool, error) {
	return func(l *deadletter.Letter) (bool, error) {
		results, err := j.run(ctx, letterValue(l))
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case err != nil:
			return false, fmt.Errorf("--match: fails on dead letter %d%s; wrap it in (...)? to skip such dead letters", l.ID, quoteJQ(err, reveal))
		}
		return slices.ContainsFunc(results, func(v any) bool { return v != nil && v != false }), nil
	}
}

// quoteJQ returns jq's error, if it may be shown.
func quoteJQ(err error, reveal bool) string {
	if !reveal {
		return ", and --reveal shows why"
	}
	return ": " + render.Visible(err.Error(), render.MaxText)
}
