package cli

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

var update = flag.Bool("update", false, "rewrite what is generated in the documents")

// The document that lists all flags has those of the program.
func TestConfigurationListsFlags(t *testing.T) {
	t.Parallel()
	const path, begin, end = "../../../../deployments/configuration.md", "<!-- flags -->\n", "<!-- /flags -->\n"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	have, after, foundEnd := strings.Cut(rest, end)
	if !found || !foundEnd {
		t.Fatalf("%s does not have the lines %q and %q", path, begin, end)
	}
	want := flagTable(newRoot(&flags.Env{Getenv: func(string) string { return "" }}, new(bool)))
	switch {
	case have == want:
	case *update:
		if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s differs from the program's flags; to rewrite it: go test ./cmd/identify-worker/internal/cli -run Configuration -update", path)
	}
}

// A variable means the same to all commands that read it: they may share an environment. How its
// values are written out may differ, after the first comma, colon or semicolon of the help.
func TestVariablesMeanOneThing(t *testing.T) {
	t.Parallel()
	type meaning struct{ kind, help, preset string }
	known, where := map[string]meaning{flags.KeyVariable: {}}, map[string]string{flags.KeyVariable: "the API key"}
	root := newRoot(&flags.Env{Getenv: func(string) string { return "" }}, new(bool))
	visitAllCommands(root, func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			variable := flags.Variable(f)
			if variable == "" {
				return // --help
			}
			help := strings.TrimSuffix(f.Usage, " [$"+variable+"]")
			if end := strings.IndexAny(help, ",:;"); end >= 0 {
				help = help[:end]
			}
			m, name := meaning{f.Value.Type(), help, f.DefValue}, c.CommandPath()+" --"+f.Name
			if had, ok := known[variable]; ok && had != m {
				t.Errorf("%s is %q for %s and %q for %s: flags that differ need variables that differ", variable, had, where[variable], m, name)
			}
			known[variable], where[variable] = m, name
		})
	})
	if len(known) < 50 {
		t.Errorf("only %d variables were found", len(known))
	}
}

// flagRow is a flag that is the same for all its commands.
type flagRow struct {
	name, variable, preset, help string
}

// flagTable lists the flags of all commands but those of the stand-in, which is for tests.
func flagTable(root *cobra.Command) string {
	commands := map[flagRow][]string{}
	visitCommands(root, func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			_, help := pflag.UnquoteUsage(f)
			variable := flags.Variable(f)
			row := flagRow{f.Name, variable, f.DefValue, strings.TrimSuffix(help, " [$"+variable+"]")}
			commands[row] = append(commands[row], strings.TrimPrefix(c.CommandPath(), root.Name()+" "))
		})
	})
	rows := slices.SortedFunc(maps.Keys(commands), func(a, b flagRow) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.variable, b.variable), cmp.Compare(commands[a][0], commands[b][0]))
	})
	dlq, _, _ := root.Find([]string{"dlq"})
	var b strings.Builder
	b.WriteString("| flag | variable | default | commands | what it is |\n|---|---|---|---|---|\n")
	fmt.Fprintf(&b, "| – | `%s` | | doctor, up, work | the API key; there is no flag for it, as other users of the machine could read it |\n", flags.KeyVariable)
	for _, r := range rows {
		preset := ""
		if r.preset != "" {
			preset = "`" + r.preset + "` "
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s| %s | %s |\n", r.name, r.variable, preset,
			describeCommands(commands[r], len(dlq.Commands())), strings.ReplaceAll(r.help, "|", `\|`))
	}
	return b.String()
}

func visitCommands(c *cobra.Command, visit func(*cobra.Command)) {
	visitAllCommands(c, func(c *cobra.Command) {
		if c.Name() != "fake-userpilot" {
			visit(c)
		}
	})
}

func visitAllCommands(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, child := range c.Commands() {
		visitAllCommands(child, visit)
	}
}

// describeCommands names the verbs of dlq together.
func describeCommands(paths []string, allVerbs int) string {
	var names, verbs []string
	for _, path := range paths {
		if verb, ok := strings.CutPrefix(path, "dlq "); ok {
			verbs = append(verbs, verb)
		} else {
			names = append(names, path)
		}
	}
	switch {
	case len(verbs) == allVerbs:
		names = append(names, "dlq")
	case len(verbs) > 0:
		names = append(names, "dlq "+strings.Join(verbs, ", "))
	}
	return strings.Join(names, ", ")
}
