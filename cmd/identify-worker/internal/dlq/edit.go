package dlq

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"
	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// edits changes events. Its steps run in the order in which they were given.
type edits struct {
	steps []editStep
	// literals are the values that were given, as JSON. Who gave them may see them.
	literals map[string]bool
}

type editStep struct {
	flag   string
	text   string // for the history
	jq     *jq
	values []any // of the expression's variables
}

func (e *edits) empty() bool { return len(e.steps) == 0 }

// newEdits adds the flags that change events.
func newEdits(cmd *cobra.Command) *edits {
	f := flags.Set{Cmd: cmd, Prefix: envPrefix}
	e := &edits{literals: map[string]bool{}}
	f.Add(step(e.set), "set", "`path=value` of a property to set, such as .metadata.plan=pro; the value is JSON, or else a string")
	f.Add(step(e.remove), "delete", "`path` of a property to remove, such as .metadata.plan")
	f.Add(step(e.edit), "edit", "jq `expression` that turns the old event into the new one")
	return e
}

// step is a flag that may be given several times. Each adds a step.
type step func(text string) error

func (step) Type() string            { return "text" }
func (step) String() string          { return "" }
func (s step) Set(text string) error { return s(text) }

// String lists all steps for the history, without the values in them.
func (e *edits) String() string {
	var all []string
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
	if !isPath(path) {
		return errors.New("must be a path such as .metadata.plan")
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
	for at := range text {
		if text[at] != '=' || !isPath(text[:at]) {
			continue
		}
		if strings.HasPrefix(text[at:], "==") {
			return "", "", errors.New(`must have one equals sign; quote a value that begins with one, as in .metadata.plan="=pro"`)
		}
		return strings.TrimSpace(text[:at]), text[at+1:], nil
	}
	return "", "", errors.New("must be a path and a value, such as .metadata.plan=pro")
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

// apply returns the edited event. Its members are sorted by name.
func (e *edits) apply(ctx context.Context, body []byte) ([]byte, error) {
	// A name that is there twice would be lost, and so would what is not UTF-8.
	if !jsontext.Value(body).IsValid() {
		return nil, errors.New("is not UTF-8 JSON, or has a duplicate name: export it, correct it by hand, and publish the result")
	}
	event, err := decodeJSON(body)
	if err != nil {
		return nil, errors.New("is not JSON")
	}
	for _, s := range e.steps {
		if event, err = s.apply(ctx, event); err != nil {
			return nil, err
		}
	}
	return gojq.Marshal(event)
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
