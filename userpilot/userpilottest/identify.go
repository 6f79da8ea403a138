package userpilottest

import (
	"bytes"
	"encoding/json"
	"io"
)

// maxProperties is the most that one object of a call may have.
const maxProperties = 500

// identify is a body that the API takes.
type identify struct {
	user      string
	metadata  properties
	companyID string // "" is no company
	company   properties
}

// refusal is why the API does not take a call.
type refusal struct {
	status  int
	code    string
	message string
}

func badRequest(code, message string) *refusal { return &refusal{400, code, message} }

// parseIdentify reads a body. Of one that is refused it returns the user, if any.
func parseIdentify(body []byte) (identify, *refusal) {
	members, ok := parseObject(body)
	if !ok {
		return identify{}, badRequest("invalid_json", "the body is not a JSON object, or a name is there twice")
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

// parseProperties reads a flat object; absent and null are none.
func parseProperties(value json.RawMessage) (properties, *refusal) {
	if value == nil || string(value) == "null" {
		return nil, nil
	}
	p, ok := parseObject(value)
	switch {
	case !ok:
		return nil, badRequest("invalid_property", "metadata and company must be objects without a name twice")
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

// parseObject reads an object with its values as they were written. encoding/json
// would let the last of two names win, so the names are read one by one.
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

// parseString returns a string that is not empty.
func parseString(value json.RawMessage) (string, bool) {
	var s string
	if len(value) == 0 || value[0] != '"' || json.Unmarshal(value, &s) != nil {
		return "", false
	}
	return s, s != ""
}
