package dlq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot"
)

const showHelp = `Show everything that is known about dead letters, selected by number or by filters: why it
died and what Userpilot answered, when it was published and when it died, its earlier
replays, and the event. Then, for each property, whether a newer event of the user has
set it since: a replay does not touch those.

Of the dead letters that filters select, it shows the newest and says how many more there
are; with --json, or by their numbers, it shows all.

Personal data is masked unless --reveal is given. Very long texts and events are truncated,
except in JSON; export writes them byte for byte.

This command only reads from NATS and changes nothing. It needs permission to publish to:
  $JS.API.DIRECT.GET.<stream>_DLQ          for the dead letters
  $JS.API.DIRECT.GET.KV_<bucket>_versions  for the version records
  $JS.API.STREAM.MSG.GET.KV_<bucket>       for the key of masked users, or their masks vary

With --json it prints one object per line: all fields of ls, and
  code, request_id, attempts, published, partition, sequence (of the event when it was first stored),
  tracked (there is a version record), history (one text for each earlier death),
  properties [{property, superseded}], event (null if it is not JSON), bytes,
  replaced [{byte, bytes, path}]: text that is not UTF-8, or half a surrogate pair, for which
  the event shown has U+FFFD, the replacement character; see --replace-invalid of replay`

func newShow(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [ID...]",
		Short: "Show dead letters in full",
		Long:  showHelp,
		Example: `  identify-worker dlq show 12
  identify-worker dlq show 12 --reveal
  identify-worker dlq show --user ann --json | jq .event`,
	}
	c := newCommand(cmd, env)
	c.addJSON(cmd, "print JSON, one object per line")
	c.addReveal(cmd)
	filter := newLetterFilter(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := filter.take(args); err != nil {
			return err
		}
		query, err := filter.query(cmd.Context(), c.reveal)
		if err != nil {
			return err
		}
		if query.IsZero() {
			return flags.Usagef("give the number of a dead letter, as shown by identify-worker dlq ls, or a filter")
		}
		q, shut, err := c.open(cmd.Context())
		if err != nil {
			return err
		}
		defer shut()
		s := &detail{out: env.Stdout, mask: c.maskFor(cmd.Context(), q, c.json), json: c.json}
		if c.json || len(query.IDs) > 0 {
			return stoppedReading(cmd.Context(), s.all(cmd.Context(), q, query))
		}
		return stoppedReading(cmd.Context(), s.newest(cmd.Context(), q, query))
	}
	return cmd
}

// detailView is what show prints. Scripts rely on its JSON: see the command's help.
type detailView struct {
	letterView
	Code       string          `json:"code"`
	RequestID  string          `json:"request_id"`
	Attempts   int             `json:"attempts"`
	Published  *time.Time      `json:"published"`
	Partition  string          `json:"partition"`
	Sequence   uint64          `json:"sequence"`
	Tracked    bool            `json:"tracked"`
	History    []string        `json:"history"`
	Properties []propertyView  `json:"properties"`
	Event      json.RawMessage `json:"event"`
	Bytes      int             `json:"bytes"`
	Replaced   []replacedView  `json:"replaced"`
}

// replacedView is where the event that is shown differs from the stored one.
type replacedView struct {
	Byte  int    `json:"byte"`
	Bytes int    `json:"bytes"`
	Path  string `json:"path"`
}

// detail prints all that is known about dead letters.
type detail struct {
	out  io.Writer
	mask *mask
	json bool
	told int
}

func (s *detail) all(ctx context.Context, q *queue.Queue, f inspector.Filter) error {
	for letter, err := range lettersWithNewer(ctx, q, f) {
		if err != nil {
			return err
		}
		v := s.view(letter)
		if s.json {
			err = s.printJSON(letter.Body, v)
		} else {
			err = s.print(letter.Body, v)
		}
		if err != nil {
			return err
		}
		s.told++
	}
	if s.told == 0 {
		return noMatch(f)
	}
	return nil
}

// newest prints the newest dead letter that matches, and how many more there are.
func (s *detail) newest(ctx context.Context, q *queue.Queue, f inspector.Filter) error {
	var last *deadletter.Letter
	more := -1
	for l, err := range inspector.New(q).DeadLetters(ctx, f) {
		if err != nil {
			return err
		}
		last = l
		more++
	}
	if last == nil {
		return noMatch(f)
	}
	newer, err := inspector.New(q).Supersessions(ctx, []*deadletter.Letter{last})
	if err != nil {
		return err
	}
	if err := s.print(last.Body, s.view(letterWithNewer{last, newer[0]})); err != nil || more == 0 {
		return err
	}
	_, err = fmt.Fprintf(s.out, "\n%s more: list them with identify-worker dlq ls %s\n", render.Thousands(more), sameFilter(f))
	return err
}

// sameFilter is how to give the filter to another command.
func sameFilter(f inspector.Filter) string {
	if only := (inspector.Filter{Groups: f.Groups}); only.String() == f.String() {
		return "--group " + strings.Join(f.Groups, ",")
	}
	return "and the same filters"
}

func (s *detail) view(l letterWithNewer) *detailView {
	m := s.mask
	v := &detailView{
		letterView: newLetterView(l, m),
		Code:       m.text(l.Code), RequestID: m.fit(l.RequestID), Attempts: l.Attempts,
		Partition: m.fit(l.Partition), Sequence: l.Origin.Sequence, Tracked: l.Tracked,
		History: []string{}, Properties: newPropertyViews(&l.newer, m), Bytes: len(l.Body),
	}
	if !l.Published.IsZero() {
		published := l.Published.UTC()
		v.Published = &published
	}
	for _, line := range l.History {
		v.History = append(v.History, m.death(line))
	}
	return v
}

func (s *detail) printJSON(body []byte, v *detailView) error {
	if text, err := s.mask.event(body, "", 0); err == nil {
		v.Event = json.RawMessage(text)
	}
	v.Replaced = []replacedView{}
	_, replaced := deadletter.ReplaceInvalid(body)
	for _, r := range replaced {
		v.Replaced = append(v.Replaced, replacedView{r.Byte, r.Bytes, s.mask.pathOf(r.Path)})
	}
	return render.JSON(s.out, v, "")
}

func (s *detail) print(body []byte, v *detailView) error {
	if s.told > 0 {
		fmt.Fprintln(s.out)
	}
	fmt.Fprintf(s.out, "dead letter %s of group %s\n\n", v.ID, render.OrDash(v.Group))
	table := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, text)
		}
	}
	line("why", v.why())
	line("request id", v.RequestID)
	line("user", orUnknown(v.User))
	line("published", v.describePublished())
	line("died", v.describeDeath())
	line("attempts", v.describeAttempts())
	line("replays", v.describeReplays())
	for _, death := range v.History {
		line("", death)
	}
	line("newer data", v.describeNewer(body))
	for _, p := range v.Properties {
		if v.SupersededInPart || v.Superseded {
			line("", p.Property+": "+p.describe())
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return s.printEvent(body, v.ID)
}

func orUnknown(text string) string {
	if text == "" {
		return "unknown"
	}
	return text
}

// why puts the reason and the answer into one sentence.
func (v *detailView) why() string {
	text := orUnknown(string(v.Reason))
	if v.Status != 0 {
		text += fmt.Sprintf(": Userpilot answered %d", v.Status)
	}
	if v.Code != "" {
		text += ", code " + v.Code
	}
	if v.Error != "" {
		text += ": " + v.Error
	}
	return text
}

func (v *detailView) describePublished() string {
	if v.Published == nil {
		return "unknown"
	}
	text := v.Published.Format(time.RFC3339)
	if v.Partition != "" {
		text += ", in partition " + v.Partition
	}
	return text
}

func (v *detailView) describeDeath() string {
	text := v.At.Format(time.RFC3339)
	if v.Published != nil {
		text += ", " + render.Duration(v.At.Sub(*v.Published)) + " later"
	}
	return text
}

func (v *detailView) describeAttempts() string {
	if v.Attempts == 0 {
		return "none that counted"
	}
	return render.Thousands(v.Attempts)
}

func (v *detailView) describeReplays() string {
	if v.Replays == 0 {
		return "none"
	}
	return render.Thousands(v.Replays)
}

func (v *detailView) describeNewer(body []byte) string {
	_, err := userpilot.Parse(body)
	switch {
	case err != nil:
		return "unknown: the event is not a valid identify, " + err.Error()
	case !v.Tracked:
		return "unknown: there is no version record"
	case !v.NewerKnown:
		return "unknown: a replay becomes a dead letter again, untracked, unless --force is given"
	case v.Superseded:
		return "has since set all of its properties: a replay makes no call"
	case v.SupersededInPart:
		return "has since set some of its properties: a replay does not touch those"
	}
	return "none since"
}

func (p propertyView) describe() string {
	if p.Superseded {
		return "newer"
	}
	return "as in this event"
}

func (s *detail) printEvent(body []byte, id string) error {
	size := render.Counted(len(body), "byte")
	text, err := s.mask.event(body, "  ", maxShownEvent)
	switch {
	case errors.Is(err, errCut):
		fmt.Fprintf(s.out, "\nevent, %s, truncated; in full: identify-worker dlq export --id %s\n%s\n", size, id, text)
	case err == nil:
		fmt.Fprintf(s.out, "\nevent, %s\n%s\n", size, text)
	case s.mask.reveal:
		fmt.Fprintf(s.out, "\nevent, %s, not JSON\n%s\n", size, render.Visible(string(body), 10*render.MaxText))
	default:
		fmt.Fprintf(s.out, "\nevent, %s, not JSON: --reveal shows it\n", size)
	}
	if _, replaced := deadletter.ReplaceInvalid(body); len(replaced) > 0 && (err == nil || errors.Is(err, errCut)) {
		fmt.Fprintf(s.out, "\ntext that is not UTF-8 is shown as \ufffd, first at byte %d, in %s: identify-worker dlq replay %s --replace-invalid sends it so\n",
			replaced[0].Byte, s.mask.pathOf(replaced[0].Path), id)
	}
	if !s.mask.reveal {
		_, err = fmt.Fprintln(s.out, "\npersonal data is masked; --reveal shows it")
		return err
	}
	return nil
}
