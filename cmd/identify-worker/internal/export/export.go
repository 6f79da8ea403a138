// Package export is the format of an exported dead letter: a line of JSON that dlq export writes
// and publish reads back.
package export

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// Line writes a dead letter as a line, with all that a publisher needs to know about it.
func Line(l *deadletter.Letter, header map[string][]string) ([]byte, error) {
	headers, err := json.Marshal(HeaderValues(header))
	if err != nil {
		return nil, err
	}
	var line bytes.Buffer
	fmt.Fprintf(&line, `{"id":"%d","headers":%s,`, l.ID, render.Printable(headers))
	if isOneLine(l.Body) {
		line.WriteString(`"event":`)
		line.Write(l.Body)
	} else {
		fmt.Fprintf(&line, `"event_base64":%q`, base64.StdEncoding.EncodeToString(l.Body))
	}
	line.WriteString("}\n")
	return line.Bytes(), nil
}

// isOneLine reports whether a body can be part of a line of JSON and be read back byte by byte.
func isOneLine(body []byte) bool {
	return json.Valid(body) && utf8.Valid(body) && len(bytes.TrimSpace(body)) == len(body) &&
		!bytes.ContainsAny(body, "\r\n") && len(render.Printable(body)) == len(body)
}

// Event is an exported event, with the options to publish it.
type Event struct {
	Body    []byte
	Options []queue.PublishOption
}

// Read reads a line of an export. It returns nil if the line is none. Its errors contain none of
// the line's values.
func Read(line []byte) (*Event, error) {
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
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, nil // it has more than one object
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
	options, err := inspector.WithExport(headers)
	return &Event{body, options}, err
}

// HeaderValues are strings, or arrays of strings for a header with several values.
func HeaderValues(h map[string][]string) map[string]any {
	values := map[string]any{}
	for name, all := range h {
		switch len(all) {
		case 0:
		case 1:
			values[name] = all[0]
		default:
			list := make([]any, len(all))
			for i, one := range all {
				list[i] = one
			}
			values[name] = list
		}
	}
	return values
}

// readHeaders reads what HeaderValues wrote.
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
