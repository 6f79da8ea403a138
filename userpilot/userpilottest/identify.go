package userpilottest

import (
	"bytes"
	"encoding/json"
	"io"
)

// maxProperties is the maximum number of properties in one object of a call.
const maxProperties = 500

// identify is a parsed body.
type identify struct {
	user      string
	metadata  properties
	companyID string // "" means no company
	company   properties
}

// refusal is the reason why the API refuses a call.
type refusal struct {
	status  int
	code    string
	message string
}

func badRequest(code, message string) *refusal { return &refusal{400, code, message} }

// parseIdentify parses a body. If it refuses the body, it still returns the user, if any.
func parseIdentify(body []byte) (identify, *refusal) {
	members, ok := parseObject(body)
	if !ok {
		return identify{}, badRequest("invalid_json", "the body is not a JSON object, or has a duplicate name")
	}
	var i identify
	if i.user, ok = parseString(members["user_id"]); !ok {
		return i, badRequest("missing_user_id", "user_id is required and must be a string")
	}
	metadata, bad := parseProperties(members["metadata"])
	if bad != nil {
		return i, bad
	}
	i.metadata = metadata
	bad = i.parseCompany(members["company"])
	return i, bad
}

func (i *identify) parseCompany(value json.RawMessage) *refusal {
	company, bad := parseProperties(value)
	if bad != nil || company == nil {
		return bad
	}
	for _, name := range []string{"id", "company_id"} {
		if id, ok := parseString(company[name]); ok && i.companyID == "" {
			i.companyID = id
		}
		delete(company, name)
	}
	if i.companyID == "" {
		return badRequest("missing_company_id", "company.id is required and must be a string")
	}
	i.company = company
	return nil
}

// parseProperties parses a flat object. It returns nil for a missing object and for null.
func parseProperties(value json.RawMessage) (properties, *refusal) {
	if value == nil || string(value) == "null" {
		return nil, nil
	}
	p, ok := parseObject(value)
	switch {
	case !ok:
		return nil, badRequest("invalid_property", "metadata and company must be objects without duplicate names")
	case len(p) > maxProperties:
		return nil, badRequest("too_many_properties", "an object has more than 500 properties")
	}
	for _, value := range p {
		if value[0] == '{' || value[0] == '[' {
			return nil, badRequest("invalid_property", "a property is an object or an array")
		}
	}
	return p, nil
}

// parseObject parses an object and keeps its values as they were written. It reads the
// names one by one, because with encoding/json the last of two duplicates would win.
func parseObject(text []byte) (properties, bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	p := make(properties)
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, false
		}
		var value json.RawMessage
		if _, twice := p[name.(string)]; twice || d.Decode(&value) != nil {
			return nil, false
		}
		p[name.(string)] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, false
	}
	_, err := d.Token()
	return p, err == io.EOF
}

// parseString parses a string that must not be empty.
func parseString(value json.RawMessage) (string, bool) {
	var s string
	if len(value) == 0 || value[0] != '"' || json.Unmarshal(value, &s) != nil {
		return "", false
	}
	return s, s != ""
}
