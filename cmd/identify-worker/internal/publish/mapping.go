package publish

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// columnOptions are what the user says of a table's columns.
type columnOptions struct {
	userID, companyID string
	renamed           map[string]string // --map
	drop, only        []string
	null              string
	decimal           byte // the mark in numbers; 0 for numbers as JSON has them
	shortRows         bool // Excel may leave out empty cells at the end of rows
}

// given are the flags that say which columns there are and which are sent.
func (o *columnOptions) given() (flags []string) {
	for _, flag := range []struct {
		name  string
		given bool
	}{
		{"--user-id", o.userID != ""},
		{"--company-id", o.companyID != ""},
		{"--map", len(o.renamed) > 0},
		{"--drop", len(o.drop) > 0},
		{"--only", len(o.only) > 0},
	} {
		if flag.given {
			flags = append(flags, flag.name)
		}
	}
	return flags
}

// column is where a cell's value goes.
type column struct {
	name    string // as in the first row
	index   int
	section string // metadata, company, or empty for user_id
	member  string
	quoted  []byte // the member as JSON, with the colon
	valueType

	filled   int      // cells with a value
	examples []string // the first of these that differ
}

// target is where a column's values go, as the preview shows it.
func (c *column) target() string {
	if c.section == "" {
		return c.member
	}
	return c.section + "." + c.member
}

// describe names a column in a message.
func (c *column) describe() string { return "column " + quoteName(c.name) }

// mapping makes events of rows. Rows become events only by a first row that is known to hold names.
type mapping struct {
	*columnOptions
	user     *column
	metadata []*column
	company  []*column
	columns  []*column // all of these, in the order of the table
	dropped  []int     // columns that are not used
	unnamed  []int     // columns that should be empty
	segment  bool      // names as Segment has them
	space    []column  // for all of them at once
}

// newMapping reads the first row. Unless it is recognised as one with names, errors hold no text of
// it.
func newMapping(header []string, o *columnOptions) (*mapping, error) {
	m := &mapping{columnOptions: o}
	user := m.findUser(header)
	if user < 0 {
		return nil, m.noUser(header)
	}
	m.segment = header[user] == "userId" && o.userID == ""
	if err := m.checkOptions(header, user); err != nil {
		return nil, err
	}
	targets := make(map[string]*column, len(header))
	m.space = make([]column, len(header))
	m.columns, m.metadata = make([]*column, 0, len(header)), make([]*column, 0, len(header))
	for i, name := range header {
		if i != user && name == header[user] && !m.isDropped(name, baseName(name)) {
			return nil, fmt.Errorf("column %s: appears twice: columns %d and %d, and only one can have the users' ids (see --user-id and --drop)", quoteName(name), min(i, user)+1, max(i, user)+1)
		}
		c, err := m.column(i, name, i == user)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		target := c.target()
		if other := targets[target]; other != nil {
			return nil, fmt.Errorf("%s: appears twice: columns %d and %d both become %s (see --map and --drop)", c.describe(), other.index+1, i+1, quoteName(target))
		}
		targets[target] = c
		m.columns = append(m.columns, c)
	}
	if len(m.company) > 0 && targets["company.id"] == nil && targets["company.company_id"] == nil {
		return nil, fmt.Errorf("%s: belongs to a company, and there is no column company.id: name the one that has the companies' ids with --company-id", m.company[0].describe())
	}
	return m, nil
}

// findUser is the index of the column with the users' ids, or -1.
func (m *mapping) findUser(header []string) int {
	if m.userID != "" {
		return m.find(header, m.userID)
	}
	for name, target := range m.renamed {
		if baseName(target) == "user_id" {
			return m.find(header, name)
		}
	}
	for _, name := range []string{"user_id", "userId"} {
		if i := m.find(header, name); i >= 0 {
			return i
		}
	}
	return -1
}

// find is the index of a column, or -1. A name may be given without its type.
func (m *mapping) find(header []string, name string) int {
	if i := slices.Index(header, name); i >= 0 {
		return i
	}
	return slices.IndexFunc(header, func(h string) bool { return baseName(h) == name })
}

// likelyUsers are names of columns that often hold users' ids. A message may quote these, as they are
// nobody's data.
func likelyUsers() []string {
	return []string{"user_id", "user id", "userid", "uid", "id", "external_id", "external id", "customer_id", "customer id", "contact_id", "contact id", "record id", "email", "e-mail", "email address"}
}

func (m *mapping) noUser(header []string) error {
	if m.userID != "" {
		return errors.New("first row: has no column of the name that --user-id gives; are these the columns' names, and is the separator right (see --delimiter)?")
	}
	for _, likely := range likelyUsers() {
		for i, name := range header {
			if strings.EqualFold(name, likely) {
				return fmt.Errorf("first row: has no column user_id; if column %d has the users' ids, give --user-id %q", i+1, name)
			}
		}
	}
	return errors.New("first row: has no column user_id; the first row must have the columns' names, and --user-id names the column that has the users' ids (see --delimiter for the separator, --map for other names)")
}

// checkOptions finds names that are given and that the table does not have, and a second column that is
// to have the users' ids.
func (m *mapping) checkOptions(header []string, user int) error {
	missing := func(flag string, names ...string) error {
		for _, name := range names {
			if name != "" && m.find(header, name) < 0 {
				return fmt.Errorf("first row: has no column %s (see %s)", quoteName(name), flag)
			}
		}
		return nil
	}
	renamed := make([]string, 0, len(m.renamed))
	for name := range m.renamed {
		renamed = append(renamed, name)
	}
	slices.Sort(renamed)
	for _, name := range renamed {
		if i := m.find(header, name); baseName(m.renamed[name]) == "user_id" && i >= 0 && i != user {
			return fmt.Errorf("column %s: only one column can have the users' ids (see --map and --user-id)", quoteName(name))
		}
	}
	return errors.Join(missing("--company-id", m.companyID), missing("--map", renamed...),
		missing("--drop", m.drop...), missing("--only", m.only...))
}

// column makes a column, or returns nil for one that is not used.
func (m *mapping) column(i int, name string, isUser bool) (*column, error) {
	c := &m.space[i]
	c.name, c.index = name, i
	base, suffix := cutType(name)
	if name == "" {
		m.unnamed = append(m.unnamed, i)
		return nil, nil
	}
	isCompany := m.companyID != "" && (name == m.companyID || base == m.companyID)
	if !isUser && !isCompany && m.isDropped(name, base) {
		m.dropped = append(m.dropped, i)
		return nil, nil
	}
	target, ok := m.renamed[name]
	if !ok {
		target, ok = m.renamed[base]
	}
	if ok {
		var given string
		if base, given = cutType(target); given != "" {
			suffix = given
		}
	}
	var err error
	if c.valueType, err = parseType(suffix, m.decimal); err != nil {
		return nil, fmt.Errorf("%s: %w", c.describe(), err)
	}
	if err := m.place(c, base, isUser, isCompany && !ok); err != nil {
		return nil, err
	}
	if c.quoted, err = jsontext.AppendQuote(nil, c.member); err != nil {
		return nil, fmt.Errorf("%s: the name is not UTF-8", c.describe())
	}
	c.quoted = append(c.quoted, ':')
	return c, nil
}

// place decides where a column's values go.
func (m *mapping) place(c *column, base string, isUser, isCompany bool) error {
	section, member, dotted := strings.Cut(base, ".")
	switch {
	case isUser:
		if c.kind != "" && c.kind != "string" {
			return fmt.Errorf("%s: a user's id is text, whatever it looks like: leave out the type", c.describe())
		}
		c.member, m.user = "user_id", c
		return nil
	case isCompany, m.segment && base == "groupId":
		c.section, c.member = "company", "id"
	case dotted && (section == "metadata" || section == "company" || m.segment && section == "traits"):
		if member == "" {
			return fmt.Errorf("%s: has no name after the dot", c.describe())
		}
		if c.section, c.member = section, member; section == "traits" {
			c.section = "metadata"
		}
	default:
		c.section, c.member = "metadata", base
	}
	if c.section == "company" {
		m.company = append(m.company, c)
	} else {
		m.metadata = append(m.metadata, c)
	}
	return nil
}

func (m *mapping) isDropped(name, base string) bool {
	if slices.Contains(m.drop, name) || slices.Contains(m.drop, base) {
		return true
	}
	return len(m.only) > 0 && !slices.Contains(m.only, name) && !slices.Contains(m.only, base)
}

// event appends the JSON of a row. Empty cells are left out.
func (m *mapping) event(body []byte, cells []cell) ([]byte, error) {
	for _, i := range m.unnamed {
		if len(cells[i].text) > 0 {
			return nil, fmt.Errorf("column %d: has a value, and no name in the first row", i+1)
		}
	}
	for _, c := range m.columns {
		c.see(&cells[c.index], m.null)
	}
	body = append(body, '{')
	start := len(body)
	var err error
	if len(cells[m.user.index].text) > 0 {
		if body, err = m.user.append(body, &cells[m.user.index], m.null); err != nil {
			return nil, err
		}
	}
	if body, err = m.section(body, start, "metadata", m.metadata, cells); err != nil {
		return nil, err
	}
	if m.hasCompany(cells) {
		if body, err = m.section(body, start, "company", m.company, cells); err != nil {
			return nil, err
		}
	}
	return append(body, '}'), nil
}

// hasCompany reports whether anything is known of a company: databases write null for all of it.
func (m *mapping) hasCompany(cells []cell) bool {
	return slices.ContainsFunc(m.company, func(c *column) bool {
		value := cells[c.index]
		return len(value.text) > 0 && (m.null == "" || string(value.value()) != m.null)
	})
}

func (m *mapping) section(body []byte, start int, name string, columns []*column, cells []cell) ([]byte, error) {
	begun := false
	for _, c := range columns {
		if len(cells[c.index].text) == 0 {
			continue
		}
		switch {
		case begun:
			body = append(body, ',')
		case len(body) > start:
			body = append(body, ',')
			fallthrough
		default:
			body = append(append(append(body, '"'), name...), `":{`...)
			begun = true
		}
		var err error
		if body, err = c.append(body, &cells[c.index], m.null); err != nil {
			return nil, err
		}
	}
	if begun {
		body = append(body, '}')
	}
	return body, nil
}

// append appends the member for a cell.
func (c *column) append(body []byte, value *cell, null string) ([]byte, error) {
	body = append(body, c.quoted...)
	text := value.value()
	if null != "" && string(text) == null {
		return append(body, "null"...), nil
	}
	body, err := c.valueType.append(body, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.describe(), err)
	}
	return body, nil
}

// see counts a cell that is not empty, whether or not the row becomes an event.
func (c *column) see(value *cell, null string) {
	if len(value.text) == 0 {
		return
	}
	if c.filled++; len(c.examples) == 2 || len(value.text) >= maxExample {
		return
	}
	if text := value.value(); null == "" || string(text) != null {
		c.example(text)
	}
}

// maxExample bounds the values that are kept as examples.
const maxExample = 4 << 10

func (c *column) example(text []byte) {
	if !slices.ContainsFunc(c.examples, func(e string) bool { return e == string(text) }) {
		c.examples = append(c.examples, string(text))
	}
}

// quoteName makes a column's name safe for a message.
func quoteName(name string) string {
	if runes := []rune(name); len(runes) > 64 {
		name = string(runes[:64])
	}
	return strconv.Quote(name)
}

// parseRenamed adds the value of a --map to those before.
func parseRenamed(text string, before map[string]string) (map[string]string, error) {
	renamed := maps.Clone(before)
	if renamed == nil {
		renamed = map[string]string{}
	}
	inside := false // a layout in parentheses may have commas
	between := func(r rune) bool {
		inside = r == '(' || inside && r != ')'
		return r == ',' && !inside
	}
	for _, pair := range strings.FieldsFunc(text, between) {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		i := strings.LastIndexByte(pair, '=')
		if i < 0 {
			return nil, errors.New("must be COLUMN=NAME, such as 'full name=name,Account=company.name'")
		}
		name, target := strings.TrimSpace(pair[:i]), strings.TrimSpace(pair[i+1:])
		if name == "" || target == "" {
			return nil, errors.New("must have a name on both sides of the equals sign")
		}
		if renamed[name] != "" {
			return nil, errors.New("must name each column once")
		}
		renamed[name] = target
	}
	return renamed, nil
}
