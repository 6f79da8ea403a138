package publish

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
)

// summary is what a first look at the inputs has found.
type summary struct {
	events    int
	segment   int // of these in Segment's shape
	letters   int // of these exported dead letters
	refused   int // files of which nothing can be published
	users     *distinct
	companies *distinct
	bad       kinds
	doubts    kinds  // what --strict would refuse
	first     []byte // the first event
}

func newSummary() *summary {
	return &summary{users: newDistinct(), companies: newDistinct(), bad: kinds{}, doubts: kinds{}}
}

func (s *summary) add(e userpilot.Event) {
	if s.events++; s.events == 1 {
		s.first = e.Body()
	}
	s.users.add(e.UserID())
	if id := e.CompanyID(); id != "" {
		s.companies.add(id)
	}
}

// kinds count what is wrong, whatever the numbers in it.
type kinds map[string]int

// maxKinds bounds what is kept of these.
const maxKinds = 100

// otherKind is all the rest.
const otherKind = "other"

// numbers match what differs between errors of a kind.
var numbers = regexp.MustCompile(`\b(line|byte|has) \d+`)

// add returns the error's kind.
func (k kinds) add(err error) string {
	kind := numbers.ReplaceAllString(err.Error(), "$1 …")
	if _, ok := k[kind]; !ok && len(k) >= maxKinds {
		kind = otherKind
	}
	k[kind]++
	return kind
}

// maxShownKinds is how many kinds the summary lists.
const maxShownKinds = 20

// show lists the kinds, the most frequent first. %s in the format is what is counted.
func (k kinds) show(out io.Writer, what, format string) {
	sorted := slices.SortedFunc(maps.Keys(k), func(a, b string) int {
		return cmp.Or(cmp.Compare(k[b], k[a]), cmp.Compare(a, b))
	})
	rest, shown := 0, 0
	for _, kind := range sorted {
		if kind == otherKind || shown == maxShownKinds {
			rest += k[kind]
			continue
		}
		fmt.Fprintf(out, format+": %s\n", render.Counted(k[kind], what), kind)
		shown++
	}
	if rest > 0 {
		fmt.Fprintf(out, format+" for other reasons\n", render.Counted(rest, what))
	}
}

// pace is how fast the fleet calls, and who says so.
type pace struct {
	rate     ratelimit.Rate
	basis    string
	backfill bool // live events go first
}

// maxShownColumns is how many columns the summary lists.
const maxShownColumns = 100

// show writes the summary. Without reveal it holds no value.
func (s *summary) show(out io.Writer, sources []namedSource, p pace, o *columnOptions, reveal bool) {
	for _, f := range sources {
		f.show(out, reveal)
	}
	if s.events > 0 {
		fmt.Fprintf(out, "first event: %s\n", maskJSON(s.first, reveal))
	}
	fmt.Fprintf(out, "%s of %s", render.Counted(s.events, "event"), s.users.describe("user", "users"))
	if s.companies.added > 0 {
		fmt.Fprintf(out, " in %s", s.companies.describe("company", "companies"))
	}
	if s.segment > 0 {
		fmt.Fprintf(out, ", %s in the shape of Segment's calls", render.Thousands(s.segment))
	}
	if s.letters > 0 {
		fmt.Fprintf(out, ", %s exported", render.Counted(s.letters, "dead letter"))
	}
	fmt.Fprintln(out)
	s.bad.show(out, "bad line", "%s")
	s.doubts.show(out, "event", "%s that --strict refuses")
	if s.events > 0 {
		fmt.Fprintf(out, "at most %s%s\n", render.Counted(s.events, "call"), p.describe(s.events))
	}
	if slices.ContainsFunc(sources, func(f namedSource) bool { return f.table != nil }) {
		null := " (see --null)"
		if o.null != "" {
			null = ", and one with the text of --null removes it"
		}
		fmt.Fprintln(out, "an empty cell leaves the property as it is"+null)
	}
}

// show says what a file is, and what a table's columns become.
func (f namedSource) show(out io.Writer, reveal bool) {
	what := f.what
	isTable := f.table != nil && f.table.mapping != nil
	if isTable && f.table.segment {
		what += ", with the columns of Segment"
	}
	if isTable && f.table.unended {
		what += ", the last line has no end (was the file cut off?)"
	}
	fmt.Fprintf(out, "%s: %s\n", render.Visible(f.name, render.MaxText), what)
	if isTable {
		f.table.show(out, reveal)
	}
}

// showTables shows what the tables were that could be read only once.
func showTables(out io.Writer, sources []namedSource, reveal bool) {
	for _, f := range sources {
		if f.table != nil {
			f.show(out, reveal)
		}
	}
}

func (p pace) describe(calls int) string {
	if p.rate.Unlimited() {
		return ", without a limit (" + p.basis + ")"
	}
	basis := p.basis
	if p.backfill {
		basis += ", less what live events use"
	}
	took := time.Duration(float64(calls) / float64(p.rate.Calls) * float64(p.rate.Window))
	return fmt.Sprintf(", %s at %s (%s)", render.Duration(took), p.rate, basis)
}

// show lists the columns; those without a value, and those that are not used, only by name.
func (t *table) show(out io.Writer, reveal bool) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  COLUMN\tBECOMES\tTYPE\tFILLED\tEXAMPLES")
	shown := 0
	var empty []string
	for _, c := range t.columns {
		switch {
		case c.filled == 0 && t.user.filled > 0:
			empty = append(empty, c.name)
		case shown < maxShownColumns:
			c.show(w, reveal)
			shown++
		default:
			shown++
		}
	}
	_ = w.Flush()
	if hidden := shown - maxShownColumns; hidden > 0 {
		fmt.Fprintf(out, "  and %s more\n", render.Counted(hidden, "column"))
	}
	dropped := make([]string, 0, len(t.dropped))
	for _, i := range t.dropped {
		dropped = append(dropped, t.header[i])
	}
	showNames(out, "empty", empty)
	showNames(out, "left out", dropped)
	if len(t.unnamed) > 0 {
		fmt.Fprintf(out, "  %s without a name, which must be empty\n", render.Counted(len(t.unnamed), "column"))
	}
}

func (c *column) show(out io.Writer, reveal bool) {
	kind := cmp.Or(c.kind, "string")
	if c.layout != "" {
		kind += " (" + c.layout + ")"
	}
	examples := make([]string, len(c.examples))
	for i, e := range c.examples {
		examples[i] = maskText(e, reveal)
	}
	fmt.Fprintf(out, "  %s\t%s\t%s\t%s\t%s\n", render.Visible(c.name, 64), render.Visible(c.target(), 80), render.Visible(kind, 40),
		render.Thousands(c.filled), strings.Join(examples, ", "))
}

// maxShownNames is how many columns are told by name only.
const maxShownNames = 10

func showNames(out io.Writer, what string, names []string) {
	if len(names) == 0 {
		return
	}
	quoted := make([]string, 0, maxShownNames+1)
	for _, name := range names[:min(len(names), maxShownNames)] {
		quoted = append(quoted, quoteName(name))
	}
	if len(names) > maxShownNames {
		quoted = append(quoted, "…")
	}
	fmt.Fprintf(out, "  %s %s: %s\n", render.Counted(len(names), "column"), what, strings.Join(quoted, ", "))
}

// maskText tells what a value is, and not what it says.
func maskText(text string, reveal bool) string {
	if reveal {
		return render.Visible(text, 40)
	}
	count := utf8.RuneCountInString(text)
	switch {
	case strings.ContainsRune(text, '@'):
		return "<e-mail>"
	case strings.IndexFunc(text, func(r rune) bool { return !unicode.IsDigit(r) }) < 0:
		return "<" + render.Counted(count, "digit") + ">"
	}
	return "<" + render.Counted(count, "character") + ">"
}

// maskJSON is an event with its values masked.
func maskJSON(body []byte, reveal bool) string {
	if reveal {
		return string(render.Printable(body))
	}
	d := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true))
	var out bytes.Buffer
	e := jsontext.NewEncoder(&out, jsontext.AllowDuplicateNames(true))
	for {
		token, err := d.ReadToken()
		if err != nil {
			break
		}
		parent, n := d.StackIndex(d.StackDepth())
		isName := parent == '{' && n%2 == 1
		if kind := token.Kind(); !isName && (kind == '"' || kind == '0') {
			text := maskText(token.String(), false)
			if kind == '0' {
				text = "<number>"
			}
			token = jsontext.String(text)
		}
		if err := e.WriteToken(token); err != nil {
			break
		}
	}
	return string(render.Printable(bytes.TrimSpace(out.Bytes())))
}
