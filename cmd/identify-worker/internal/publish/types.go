package publish

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// valueType is what the cells of a column become.
type valueType struct {
	kind    string // number, bool, date, or string, which is the same as empty
	layout  string // of dates; empty for ISO 8601
	timed   bool   // the layout has a time of day
	decimal byte
}

const typeNames = ":string, :number, :bool, :date or :date(02/01/2006)"

// cutType cuts the type off a column's name: seats:number, born:date(02/01/2006). It is what follows
// the last colon, if that is a word; "Note: internal" has none.
func cutType(name string) (base, suffix string) {
	end := len(name)
	if strings.HasSuffix(name, ")") {
		if i := strings.LastIndex(name, ":date("); i >= 0 {
			return name[:i], name[i+1:]
		}
	}
	i := strings.LastIndexByte(name[:end], ':')
	if i <= 0 || i+1 == end {
		return name, ""
	}
	for _, r := range name[i+1:] {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return name, ""
		}
	}
	return name[:i], name[i+1:]
}

func baseName(name string) string {
	base, _ := cutType(name)
	return base
}

func parseType(suffix string, decimal byte) (valueType, error) {
	t := valueType{kind: suffix, decimal: decimal}
	if layout, ok := strings.CutPrefix(suffix, "date("); ok {
		t.kind, t.layout = "date", strings.TrimSuffix(layout, ")")
		t.timed = isTimed(t.layout)
		return t, checkLayout(t.layout)
	}
	switch suffix {
	case "", "string", "number", "bool", "date":
		return t, nil
	}
	return t, errors.New("ends in an unknown type: the types are " + typeNames + "; add :string if the colon is part of the name")
}

// checkLayout finds layouts that lose the day, such as dd/mm/yyyy, which are other tools' own.
func checkLayout(layout string) error {
	if layout == "excel" || layout == "unix" {
		return nil
	}
	day := time.Date(1987, time.November, 28, 0, 0, 0, 0, time.UTC)
	got, err := time.Parse(layout, day.Format(layout))
	if err != nil || got.Year() != day.Year() || got.YearDay() != day.YearDay() {
		return errors.New("is not a layout: write 2 January 2006 as the file would, such as :date(02/01/2006), :date(1/2/06) or :date(2006-01-02 15:04); or :date(excel) for serial numbers, :date(unix) for seconds since 1970")
	}
	return nil
}

// append appends a cell as JSON. Errors never hold its text.
func (t *valueType) append(body, text []byte) ([]byte, error) {
	switch t.kind {
	case "number":
		return t.appendNumber(body, bytes.TrimSpace(text))
	case "bool":
		return appendBool(body, bytes.TrimSpace(text))
	case "date":
		return t.appendDate(body, strings.TrimSpace(string(text)))
	}
	body, err := jsontext.AppendQuote(body, text)
	if err != nil {
		return nil, errNotUTF8
	}
	return body, nil
}

var errNotUTF8 = errors.New("is not UTF-8 (see --encoding)")

func appendBool(body, text []byte) ([]byte, error) {
	for _, yes := range []string{"true", "t", "yes", "y", "1"} {
		if len(text) == len(yes) && strings.EqualFold(string(text), yes) {
			return append(body, "true"...), nil
		}
	}
	for _, no := range []string{"false", "f", "no", "n", "0"} {
		if len(text) == len(no) && strings.EqualFold(string(text), no) {
			return append(body, "false"...), nil
		}
	}
	return nil, errors.New("is not true or false")
}

func (t *valueType) appendNumber(body, text []byte) ([]byte, error) {
	if t.decimal != 0 {
		text = plainNumber(text, t.decimal)
	}
	if number := jsontext.Value(text); isInteger(text) || number.Kind() == '0' && number.IsValid() {
		return append(body, number...), nil
	}
	if t.decimal == ',' {
		return nil, errors.New("is not a number such as 12 or 1.234,50")
	}
	if t.decimal == '.' {
		return nil, errors.New("is not a number such as 12 or 1,234.50")
	}
	return nil, errors.New("is not a number such as 12 or 1.5 (see --decimal for 1.234,50)")
}

// isInteger reports whether a text is only digits, as most numbers are, and one that JSON allows. It
// spares these the general check, which is slower.
func isInteger(text []byte) bool {
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(text) == 1 || len(text) > 1 && text[0] != '0'
}

// plainNumber removes the marks between thousands and makes the decimal mark a point. It returns nil
// if the marks are not where they belong, as then the number may be meant otherwise.
func plainNumber(text []byte, decimal byte) []byte {
	whole, fraction, found := bytes.Cut(text, []byte{decimal})
	digits := bytes.TrimPrefix(whole, []byte{'-'})
	plain := append([]byte(nil), whole[:len(whole)-len(digits)]...)
	groups := [][]byte{digits}
	if i := bytes.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		mark, length := utf8.DecodeRune(digits[i:])
		if mark == rune(decimal) || !strings.ContainsRune(".,' \u00a0\u202f", mark) {
			return nil
		}
		groups = bytes.Split(digits, digits[i:i+length])
	}
	for i, group := range groups {
		if len(groups) > 1 && (i > 0 && len(group) != 3 || len(group) > 3 || len(group) == 0) {
			return nil
		}
		plain = append(plain, group...)
	}
	if found {
		plain = append(append(plain, '.'), fraction...)
	}
	return plain
}

// isTimed reports whether a layout has a time of day.
func isTimed(layout string) bool {
	day := time.Date(1987, time.November, 28, 0, 0, 0, 0, time.UTC)
	return day.Format(layout) != day.Add(13*time.Hour+14*time.Minute+15*time.Second).Format(layout)
}

// appendDate appends a date as ISO 8601. A time without a zone is UTC.
func (t *valueType) appendDate(body []byte, text string) ([]byte, error) {
	at, timed, err := t.parseDate(text)
	if err != nil {
		return nil, err
	}
	body = append(body, '"')
	if timed {
		body = at.AppendFormat(body, time.RFC3339Nano)
	} else {
		body = at.AppendFormat(body, time.DateOnly)
	}
	return append(body, '"'), nil
}

func (t *valueType) parseDate(text string) (at time.Time, timed bool, err error) {
	switch t.layout {
	case "":
		return parseISO(text)
	case "excel":
		return parseSerial(text)
	case "unix":
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(seconds) || seconds < 0 || seconds > 1e11 {
			return at, false, errors.New("is not a number of seconds")
		}
		return time.UnixMilli(int64(seconds * 1000)).UTC(), true, nil
	}
	// Where this machine is must not matter: by its own zone, time.Parse would know some abbreviations.
	if at, err = time.ParseInLocation(t.layout, text, time.UTC); err != nil {
		return at, false, fmt.Errorf("is not a date as %s is", quoteName(t.layout))
	}
	// One that is not known is taken for UTC.
	zone, offset := at.Zone()
	if offset == 0 && zone != "UTC" && zone != "GMT" && strings.Contains(t.layout, "MST") && !strings.Contains(t.layout, "07") {
		return at, false, errors.New("has a time zone of which only UTC and GMT are known for sure: export the offset, such as +02:00")
	}
	return at, t.timed, nil
}

// parseISO also knows how databases write zones.
func parseISO(text string) (at time.Time, timed bool, err error) {
	for _, layout := range []string{
		time.DateOnly, "2006-01-02T15:04:05Z07:00", "2006-01-02 15:04:05Z07:00", "2006-01-02T15:04:05", time.DateTime, "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "2006-01-02 15:04",
		"2006-01-02T15:04:05Z0700", "2006-01-02 15:04:05Z07", "2006-01-02 15:04:05 Z0700", "2006-01-02 15:04:05 UTC",
	} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, layout != time.DateOnly, nil
		}
	}
	return at, false, errors.New("is not a date such as 2026-01-31 or 2026-01-31T15:04:05Z; tell how the file writes them, such as :date(02/01/2006)")
}

const (
	// Before 1 March 1900 the serial numbers of spreadsheets differ by a day.
	firstSerial = 61
	lastSerial  = 2_958_465 // 31 December 9999
)

// parseSerial reads the serial number of a date in a spreadsheet.
func parseSerial(text string) (at time.Time, timed bool, err error) {
	days, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(days) || days < firstSerial || days >= lastSerial+1 {
		return at, false, errors.New("is not a number of days")
	}
	whole, rest := math.Modf(days)
	at = time.Date(1899, time.December, 30+int(whole), 0, 0, 0, 0, time.UTC)
	return at.Add(time.Duration(rest * 24 * float64(time.Hour))).Round(time.Second), rest > 0, nil
}
