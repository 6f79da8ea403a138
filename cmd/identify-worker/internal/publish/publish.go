// Package publish is the command publish, which reads events from files of many kinds.
//
// Its laws:
//
//   - A file is recognised by its content; its name has a word only where that tells nothing.
//   - Nothing of a file is published if it cannot be read to its end. So files are read twice; what
//     comes from a pipe is published as it is read, and a fault names the line.
//   - No user is lost or mixed up without a word: a row is published as it is in the table, or its line
//     is reported.
//   - No text holds a cell or a value, unless --reveal is given: messages name files, lines and columns,
//     and a column's name only if the first row is known to have names.
package publish

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// stopPatience is how long an interrupted publish waits for acknowledgements.
const stopPatience = 5 * time.Second

const longHelp = `Publish identify events from files, or from standard input if there is no file or it is "-".

A file may be NDJSON, with an event on each line: {"user_id":"ann","metadata":{"plan":"pro"}}
or JSON (an array, or objects over several lines), Segment's calls, or a table such as CSV;
compressed or not; in UTF-8, UTF-16, or another --encoding. What it is shows in the summary.
A line written by identify-worker dlq export keeps its original position: it does not
overwrite what newer events have set.

The first row of a table has the columns' names. From an export of Excel:
  1. In Excel, save as "CSV UTF-8", with the names of the columns in the first row.
  2. Find the column with the users' ids, as your application gives them to Userpilot.
  3. identify-worker publish --dry-run --user-id ID users.csv      shows what would be sent
  4. email becomes metadata.email; name others: --map 'Full name=name,Account=company.name'
  5. --company-id 'Account ID' names the companies' ids; --drop and --only choose columns.
  6. Values are text, unless a name ends in :number, :bool, or :date(02/01/2006), which shows
     how the file writes 2 January 2006: --map 'Seats=seats:number'. --decimal , is for 1.234,5
  7. Repeat 3 until the preview is right, with --strict to find ids that are surely wrong.
  8. The same without --dry-run publishes. An empty cell changes nothing; see --null.

Bad lines are reported by file and number, and the other lines are still published; the
exit status is then 1. If a file as a whole cannot be read, nothing is published. A line
may have up to 1 MiB. A quoted cell that holds what looks like rows is a bad line, as a
quote is probably missing, unless --multiline is given. What comes from a pipe is published
as it is read.

On a terminal it asks before it publishes anything if there are bad lines, more than 10,000
users, or more than 1,000 without --backfill; --yes skips the question.

By default these are live events: what your apps publish meanwhile waits behind them. With
--backfill workers call for live events first, and for these with all calls that are left. For
each property the event that was published last still wins, whichever of the two it is.

--message-id content derives each event's id from all lines up to it. A file that is
published twice within two minutes is then stored once, and so is the first part of a
file that was interrupted or has grown since. fresh gives each event a unique id, so
that an event that had to be resent is stored once. The server keeps ids in memory for
two minutes, some 100 bytes each: none avoids that when you publish millions of events
at once and storing an event twice is harmless.`

// New returns the command publish.
func New(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "publish [FILE...]",
		Short: "Publish identify events from NDJSON or CSV",
		Long:  longHelp,
		Example: `  identify-worker publish users.ndjson
  identify-worker publish --dry-run --strict users.csv
  identify-worker publish --backfill all-users.csv
  identify-worker publish --user-id 'Contact ID' --map 'E-mail=email,Seats=seats:number' contacts.csv
  some-export | identify-worker publish --rate 500/s
  printf 'user_id,plan,seats:number\nann,pro,12\n' | identify-worker publish`,
	}
	f := flags.Set{Cmd: cmd}
	s := newSettings(f)
	logs := flags.NewLogSettings(f)
	cmd.RunE = func(cmd *cobra.Command, files []string) error {
		if err := flags.CheckTopology(s.topology); err != nil {
			return err
		}
		if s.fromLine > 1 && len(files) > 1 {
			return flags.Usagef("--from-line: needs a single file")
		}
		line := terminal.NewLine(env.Stderr, env.Getenv)
		r := &publishing{settings: s, env: env, line: line, log: env.Logger(logs, line)}
		return r.do(cmd.Context(), files)
	}
	return cmd
}

type settings struct {
	source            sourceOptions
	messageID, errors string
	strict, dryRun    bool
	reveal, yes       bool
	backfill          bool
	fromLine          int
	rate              ratelimit.Rate
	conn              *flags.Connection
	topology          *queue.Topology
}

func newSettings(f flags.Set) *settings {
	s := &settings{messageID: "fresh", fromLine: 1, source: sourceOptions{format: "auto", encoding: "auto"}}
	columns := &s.source.columns
	f.Choice(&s.source.format, "format", "input format; auto looks at the content", "auto", "ndjson", "json", "csv")
	f.Choice(&s.source.encoding, "encoding", "encoding; auto is UTF-8 or UTF-16", "auto", "utf-8", "utf-16le", "utf-16be", "windows-1252")
	f.Add(flags.NewValue(&s.source.delimiter, "character", parseSeparator, formatSeparator), "delimiter", "`character` that separates a table's cells: , or ; or | or tab; found by default")
	f.Toggle(&s.source.multiline, "multiline", "accept quoted cells with lines that look like rows")
	f.Toggle(&columns.shortRows, "short-rows", "accept rows with fewer cells than names, as if their last cells were empty")
	f.Text(&columns.userID, "user-id", "column", "`column` with the users' ids, if it is not user_id")
	f.Text(&columns.companyID, "company-id", "column", "`column` with the companies' ids, if it is not company.id")
	rename := func(text string) (map[string]string, error) { return parseRenamed(text, columns.renamed) }
	f.Add(flags.NewValue(&columns.renamed, "names", rename, formatRenamed), "map", "`names` for columns, such as 'full name=name,Account=company.name'")
	f.List(&columns.drop, "drop", "columns", "`columns` to leave out")
	f.List(&columns.only, "only", "columns", "`columns` to take, beside the ids; others are left out")
	f.Add(flags.NewValue(&columns.decimal, "mark", parseDecimal, formatSeparator), "decimal", "decimal `mark` in columns of numbers: , or . with the other one between thousands")
	f.Text(&columns.null, "null", "text", "`text` of a cell that means null, which removes the property")
	f.Toggle(&s.strict, "strict", "also reject what is surely a mistake: ids such as undefined, nested values, names twice")
	f.Toggle(&s.dryRun, "dry-run", "show what would be published, and all bad lines")
	f.Toggle(&s.reveal, "reveal", "show values in the preview")
	f.Toggle(&s.yes, "yes", "skip the confirmation")
	f.Toggle(&s.backfill, "backfill", "deliver these events after all live events, which then do not wait for them")
	f.Number(&s.fromLine, 1, math.MaxInt32, "from-line", "`line` to begin at, to continue what was stopped")
	// The worker's IDENTIFY_RATE would make an import take hours.
	flags.Set{Cmd: f.Cmd, Prefix: "PUBLISH_"}.Rate(&s.rate, "rate", "maximum events per window; 0 means no limit")
	f.Choice(&s.messageID, "message-id", "message ids, by which the server detects duplicates", "fresh", "content", "none")
	f.Text(&s.errors, "errors", "file", "`file` for a report of all bad lines, and of how a run has ended early")
	s.conn = flags.NewCommandConnection(f, "wait")
	s.topology = flags.NewPipeline(f)
	return s
}

func parseSeparator(text string) (byte, error) {
	if text == "tab" || text == `\t` {
		return '\t', nil
	}
	if len(text) != 1 || strings.ContainsAny(text, "\"\r\n") || text[0] >= utf8.RuneSelf {
		return 0, errors.New("must be one character such as ; or the word tab")
	}
	return text[0], nil
}

func parseDecimal(text string) (byte, error) {
	if text != "," && text != "." {
		return 0, errors.New("must be a comma or a point")
	}
	return text[0], nil
}

func formatSeparator(c byte) string {
	switch c {
	case 0:
		return ""
	case '\t':
		return "tab"
	}
	return string(rune(c))
}

func formatRenamed(renamed map[string]string) string {
	pairs := make([]string, 0, len(renamed))
	for name, target := range renamed {
		pairs = append(pairs, name+"="+target)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

func (r *publishing) do(ctx context.Context, files []string) error {
	in, err := openInputs(ctx, r.env, files)
	if err != nil {
		return err
	}
	defer in.close()
	if in.holds(r.settings.errors) {
		return flags.Usagef("--errors: is one of the files to read, and would replace it")
	}
	if r.bad, err = newBadLines(r.line, r.settings.errors); err != nil {
		return err
	}
	err = r.run(ctx, in)
	r.bad.hint()
	err = r.conclude(ctx, err)
	if errReport := r.bad.close(err); err == nil {
		err = errReport
	}
	return err
}
