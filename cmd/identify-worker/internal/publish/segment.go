package publish

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// fromSegment returns the identify that a call in Segment's shape makes: userId, traits and groupId
// of an identify or a group. It returns nil if the text has another shape. Its errors hold none of
// the text.
func fromSegment(text []byte) ([]byte, error) {
	members, err := readObject(text)
	user := members["userId"]
	if err != nil || user == nil && members["anonymousId"] == nil || members["user_id"] != nil || members["metadata"] != nil || members["company"] != nil {
		return nil, nil
	}
	kind := string(bytes.Trim(members["type"], `"`))
	switch kind {
	case "track", "page", "screen", "alias":
		return nil, fmt.Errorf("type: is a %s of Segment, which tells nothing of the user's properties", kind)
	}
	if user == nil {
		return nil, errors.New("userId: is missing; a visitor without a name is no user")
	}
	group := members["groupId"]
	if context, err := readObject(members["context"]); err == nil && group == nil {
		group = context["groupId"]
	}
	if kind == "" && group == nil && members["traits"] == nil {
		return nil, nil // nothing but the user's id is as Segment has it
	}
	if kind == "group" {
		return segmentGroup(user, group, members["traits"])
	}
	return segmentIdentify(user, group, members["traits"]), nil
}

func segmentIdentify(user, group, traits jsontext.Value) []byte {
	body := append([]byte(`{"user_id":`), user...)
	if traits != nil && traits.Kind() != 'n' {
		body = append(append(body, `,"metadata":`...), traits...)
	}
	if group != nil && group.Kind() != 'n' {
		body = append(append(append(body, `,"company":{"id":`...), group...), '}')
	}
	return append(body, '}')
}

// segmentGroup has the traits as the company's. They may repeat its id.
func segmentGroup(user, group, traits jsontext.Value) ([]byte, error) {
	if group == nil {
		return nil, errors.New("groupId: is missing")
	}
	own := map[string]jsontext.Value{}
	if traits != nil && traits.Kind() != 'n' {
		var err error
		if own, err = readObject(traits); err != nil {
			return nil, errors.New("traits: must be an object")
		}
	}
	hasID := false
	for _, name := range []string{"id", "company_id"} {
		id := own[name]
		if id != nil && !bytes.Equal(id, group) {
			return nil, errors.New("traits: have another id than groupId")
		}
		hasID = hasID || id != nil
	}
	body := append([]byte(`{"user_id":`), user...)
	if hasID {
		return append(append(append(body, `,"company":`...), traits...), '}'), nil
	}
	body = append(append(body, `,"company":{"id":`...), group...)
	if len(own) > 0 {
		body = append(append(body, ','), bytes.TrimSpace(traits[1:len(traits)-1])...)
	}
	return append(body, "}}"...), nil
}

// readObject returns the members of an object. Names that appear twice are an error, and so is what
// follows the object.
func readObject(text []byte) (map[string]jsontext.Value, error) {
	d := jsontext.NewDecoder(bytes.NewReader(text))
	if open, err := d.ReadToken(); err != nil || open.Kind() != '{' {
		return nil, errors.New("is not an object")
	}
	members := map[string]jsontext.Value{}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		members[key] = value.Clone()
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has data after its end")
	}
	return members, nil
}
