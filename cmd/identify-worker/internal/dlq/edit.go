package dlq

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"
	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// edits changes events. First comes the replacement of what is not UTF-8, then its steps in the order
// in which they were given.
type edits struct {
	replaceInvalid bool
	steps          []editStep
	// literals are the values that were given, as JSON. Who gave them may see them.
	literals map[string]bool
}

type editStep struct {
	flag   string
	text   string // for the history
	jq     *jq
	values []any // of the expression's variables
}

func (e *edits) empty() bool { return len(e.steps) == 0 && !e.replaceInvalid }

// newEdits adds the flags that change events.
func newEdits(cmd *cobra.Command) *edits {
	f := flags.Set{Cmd: cmd, Prefix: envPrefix}
	e := &edits{literals: map[string]bool{}}
	f.Add(step(e.set), "set", "`path=value` to set, such as metadata.plan=pro or user_id='\"42\"'; the value is JSON, or else a string")
	f.Add(step(e.remove), "delete", "`path` of a property to remove, such as metadata.plan")
	f.Add(step(e.edit), "edit", "jq `expression` that turns the old event into the new one")
	f.Toggle(&e.replaceInvalid, replaceInvalidFlag, "first replace bytes that are not UTF-8, and half surrogate pairs, by U+FFFD")
	return e
}

const replaceInvalidFlag = "replace-invalid"

// step is a flag that may be given several times. Each adds a step.
type step func(text string) error

func (step) Type() string            { return "text" }
func (step) String() string          { return "" }
func (s step) Set(text string) error { return s(text) }

// String lists all steps for the history, without the values in them.
func (e *edits) String() string {
	var all []string
	if e.replaceInvalid {
		all = append(all, "--"+replaceInvalidFlag)
	}
	for _, s := range e.steps {
		all = append(all, s.flag+" "+s.text)
	}
	return strings.Join(all, " ")
}

// set reads PATH=VALUE.
func (e *edits) set(text string) error {
	path, literal, err := splitAssignment(text)
	if err != nil {
		return err
	}
	value, err := decodeJSON([]byte(literal))
	if err != nil {
		value = literal
	}
	// The value is a variable, so nothing in it is an expression.
	code, err := compileJQ("("+path+") = $value", "$value")
	if err != nil {
		return err
	}
	encoded, err := gojq.Marshal(value)
	if err != nil {
		return err
	}
	e.literals[string(encoded)] = true
	e.steps = append(e.steps, editStep{flag: "--set", text: withoutValues(path) + "=…", jq: code, values: []any{value}})
	return nil
}

// remove reads PATH.
func (e *edits) remove(path string) error {
	path = withDot(path)
	if !isPath(path) {
		return errors.New("must be a path such as metadata.plan")
	}
	code, err := compileJQ("del(" + path + ")")
	if err != nil {
		return err
	}
	e.steps = append(e.steps, editStep{flag: "--delete", text: withoutValues(path), jq: code})
	return nil
}

// edit reads an expression.
func (e *edits) edit(text string) error {
	code, err := compileJQ(text)
	if err != nil {
		return err
	}
	e.steps = append(e.steps, editStep{flag: "--edit", text: withoutValues(text), jq: code})
	return nil
}

// splitAssignment finds the equals sign after the path. An earlier one may be part of a name.
func splitAssignment(text string) (path, value string, err error) {
	text = withDot(text)
	for at := range text {
		if text[at] != '=' || !isPath(text[:at]) {
			continue
		}
		if strings.HasPrefix(text[at:], "==") {
			return "", "", errors.New(`must have one equals sign; quote a value that begins with one, as in metadata.plan="=pro"`)
		}
		return strings.TrimSpace(text[:at]), text[at+1:], nil
	}
	return "", "", errors.New("must be a path and a value, such as metadata.plan=pro")
}

// memberOfEvent matches a path, or an assignment to one, that lacks its leading dot. Other words are
// no members of an event: that of plan=pro is probably .metadata.plan.
var memberOfEvent = regexp.MustCompile(`^\s*(user_id|metadata|company)\s*($|[.[=])`)

// withDot adds a path's leading dot if it is missing.
func withDot(text string) string {
	if memberOfEvent.MatchString(text) {
		return "." + strings.TrimLeft(text, " \t\r\n")
	}
	return text
}

// isPath reports whether the text is a jq path, such as .metadata.plan, .metadata["a b"] or
// .list[0], and no other expression.
func isPath(text string) bool {
	query, err := gojq.Parse(text)
	if err != nil || query.Term == nil || len(query.FuncDefs) > 0 || len(query.Imports) > 0 {
		return false
	}
	t := query.Term
	if t.Type != gojq.TermTypeIndex && (t.Type != gojq.TermTypeIdentity || len(t.SuffixList) == 0) {
		return false
	}
	for _, s := range t.SuffixList {
		if s.Index == nil && !s.Iter && !s.Optional {
			return false
		}
	}
	return true
}

// editFunc returns the function that edits a letter's event, or nil if there is nothing to edit.
// Its errors do not quote the event. ctx ends an expression that never does.
func (e *edits) editFunc(ctx context.Context) func(*deadletter.Letter) ([]byte, error) {
	if e.empty() {
		return nil
	}
	return func(l *deadletter.Letter) ([]byte, error) { return e.apply(ctx, l.Body) }
}

// apply returns the edited event. Steps that change something sort its members by name.
func (e *edits) apply(ctx context.Context, body []byte) ([]byte, error) {
	repaired, replaced := deadletter.ReplaceInvalid(body)
	if len(replaced) > 0 && !e.replaceInvalid {
		return nil, errors.New("has text that is not UTF-8")
	}
	result, err := e.applySteps(ctx, repaired)
	if err != nil {
		return nil, err
	}
	// Two users' ids may be the same after a replacement.
	if slices.ContainsFunc(replaced, isUser) && slices.Equal(deadletter.UserIDs(result), deadletter.UserIDs(repaired)) {
		return nil, errors.New("its user_id is not UTF-8, so its user is unknown: --set user_id=ID and --force name one")
	}
	return result, nil
}

func isUser(r deadletter.Replacement) bool { return r.Path == "/user_id" }

func (e *edits) applySteps(ctx context.Context, body []byte) ([]byte, error) {
	switch {
	case len(e.steps) == 0:
		return body, nil
	case !jsontext.Value(body).IsValid(jsontext.AllowDuplicateNames(true)):
		return nil, errors.New("is not JSON: export it, correct it by hand, and publish the result")
	case !jsontext.Value(body).IsValid(): // it would be lost
		return nil, errors.New("has a duplicate name: export it, correct it by hand, and publish the result")
	}
	event, err := decodeJSON(body)
	if err != nil {
		return nil, errors.New("is not JSON")
	}
	before, err := gojq.Marshal(event)
	if err != nil {
		return nil, err
	}
	for _, s := range e.steps {
		if event, err = s.apply(ctx, event); err != nil {
			return nil, err
		}
	}
	after, err := gojq.Marshal(event)
	if err == nil && bytes.Equal(after, before) {
		return body, nil // the publisher's bytes: no edit
	}
	return after, err
}

func (s *editStep) apply(ctx context.Context, event any) (any, error) {
	results, err := s.jq.run(ctx, event, s.values...)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil: // jq's words may quote the event
		return nil, fmt.Errorf("%s fails on it", s.flag)
	case len(results) != 1:
		return nil, fmt.Errorf("%s produces %s, must produce one", s.flag, render.Counted(len(results), "event"))
	}
	if _, ok := results[0].(map[string]any); !ok {
		return nil, fmt.Errorf("%s produces %s, must produce an object", s.flag, kindOf(results[0]))
	}
	return results[0], nil
}

// kindOf names a JSON value in a sentence.
func kindOf(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case []any:
		return "an array"
	case map[string]any:
		return "an object"
	}
	return "a number"
}
