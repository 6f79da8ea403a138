package userpilottest

import (
	"encoding/json"
	"maps"
)

// Profile is a user's profile.
type Profile struct {
	Properties map[string]json.RawMessage // values as they were written
	Company    string                     // the id of the user's company; "" means none
}

// properties are the properties of one user or company.
type properties map[string]json.RawMessage

// merge sets the properties in sent, removes those that are null and keeps the rest.
func (p properties) merge(sent properties) {
	for name, value := range sent {
		if string(value) == "null" {
			delete(p, name)
		} else {
			p[name] = value
		}
	}
}

// store holds the profiles and the companies by id.
type store struct {
	users     map[string]*Profile
	companies map[string]properties
}

func newStore() store {
	return store{users: make(map[string]*Profile), companies: make(map[string]properties)}
}

func (s store) apply(i identify) {
	user := s.users[i.user]
	if user == nil {
		user = &Profile{Properties: make(properties)}
		s.users[i.user] = user
	}
	properties(user.Properties).merge(i.metadata)
	if i.companyID == "" {
		return
	}
	user.Company = i.companyID
	if s.companies[i.companyID] == nil {
		s.companies[i.companyID] = make(properties)
	}
	s.companies[i.companyID].merge(i.company)
}

func (s store) profile(userID string) (Profile, bool) {
	user, ok := s.users[userID]
	if !ok {
		return Profile{}, false
	}
	return Profile{Properties: maps.Clone(user.Properties), Company: user.Company}, true
}

func (s store) company(id string) (map[string]json.RawMessage, bool) {
	company, ok := s.companies[id]
	return maps.Clone(company), ok
}
