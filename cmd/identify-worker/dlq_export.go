package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue"
)

func (p *program) dlqExport() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write dead letters to standard output, to keep or to correct by hand",
		Long: `Write dead letters to standard output as NDJSON, oldest first, each in a line:
  {"id": "12", "headers": {...}, "event": {...}}
A header is a string, or an array where there are several of its name. The event is what was
published, byte by byte; where it is not JSON in one line of printable UTF-8, there is
event_base64 instead. Nothing is masked: these are your users' data.

identify-worker publish reads such lines back, also after a correction: it publishes the event
as the old one that it is, so that it is not applied over newer data. To another pipeline than
that of the dead letter it is new. The dead letters
stay where they are; discard them when their events are published.

It reads from NATS alone and changes nothing. The rights that it needs, to publish to:
  $JS.API.DIRECT.GET.<stream>_DLQ      for the dead letters
  $JS.API.STREAM.MSG.GET.KV_<bucket>   to seal how old the events are`,
		Example: `  identify-worker dlq export --group 4be1d07a > letters.ndjson
  jq -c '.event.metadata.plan = "pro"' letters.ndjson | identify-worker publish`,
		Args: cobra.NoArgs,
	}
	b := newLetterbox(cmd, "print JSON, an object in each line: it always does")
	filter := newLetterFilter(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return b.read(cmd.Context(), p, filter, true, func(q *queue.Queue, query queue.Filter) error {
			return exportLetters(cmd.Context(), p.stdout, q, query)
		})
	}
	return cmd
}

func exportLetters(ctx context.Context, out io.Writer, q *queue.Queue, f queue.Filter) error {
	for letter, err := range q.DeadLetters(ctx, f) {
		if err != nil {
			return err
		}
		header, err := q.ExportHeader(ctx, letter)
		if err != nil {
			return err
		}
		line, err := exportLine(letter, header)
		if err != nil {
			return fmt.Errorf("dead letter %d: %w", letter.ID, err)
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// exportLine is a dead letter in a line, with all that a publisher needs to know of it.
func exportLine(l *queue.DeadLetter, header map[string][]string) ([]byte, error) {
	headers, err := json.Marshal(headerValues(header))
	if err != nil {
		return nil, err
	}
	var line bytes.Buffer
	fmt.Fprintf(&line, `{"id":"%d","headers":%s,`, l.ID, printable(headers))
	if isOneLine(l.Body) {
		line.WriteString(`"event":`)
		line.Write(l.Body)
	} else {
		fmt.Fprintf(&line, `"event_base64":%q`, base64.StdEncoding.EncodeToString(l.Body))
	}
	line.WriteString("}\n")
	return line.Bytes(), nil
}

// isOneLine reports whether a body can stand in a line of JSON and be read back to the byte.
func isOneLine(body []byte) bool {
	return json.Valid(body) && utf8.Valid(body) && len(bytes.TrimSpace(body)) == len(body) &&
		!bytes.ContainsAny(body, "\r\n") && len(printable(body)) == len(body)
}

// exported is an event that was exported, and how it is published.
type exported struct {
	event  []byte
	option queue.PublishOption
}

// readExported reads a line of an export; nil if it is none. What is wrong with one it tells without
// any of its values.
func readExported(line []byte) (*exported, error) {
	var parts struct {
		ID      json.RawMessage `json:"id"`
		Headers map[string]any  `json:"headers"`
		Event   json.RawMessage `json:"event"`
		Base64  *string         `json:"event_base64"`
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&parts); err != nil || parts.Headers == nil || parts.Event == nil && parts.Base64 == nil {
		return nil, nil
	}
	body := []byte(parts.Event)
	if parts.Base64 != nil {
		var err error
		if body, err = base64.StdEncoding.DecodeString(*parts.Base64); err != nil || parts.Event != nil {
			return nil, errors.New("event_base64: must be base64, without an event beside it")
		}
	}
	headers, err := readHeaders(parts.Headers)
	if err != nil {
		return nil, err
	}
	option, err := queue.WithExport(headers)
	return &exported{body, option}, err
}

// readHeaders reads what headerValues has written.
func readHeaders(values map[string]any) (map[string][]string, error) {
	headers := map[string][]string{}
	for name, value := range values {
		all, ok := value.([]any)
		if !ok {
			all = []any{value}
		}
		for _, one := range all {
			text, ok := one.(string)
			if !ok {
				return nil, errors.New("headers: must be strings, or arrays of strings")
			}
			headers[name] = append(headers[name], text)
		}
	}
	return headers, nil
}
