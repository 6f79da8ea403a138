// Package flags reads what a command is given: its flags, each with an environment variable, and
// the process's streams ([Env]). Groups of flags that several commands share become what they
// describe: a connection, a topology, a logger, an API key, a worker's settings.
package flags

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// envAnnotation holds the name of a flag's environment variable.
const envAnnotation = "identify-worker/env"

// Set adds flags to one command, each with its environment variable: IDENTIFY_, the
// prefix and the flag's name in capitals, or a name that others use too. A flag's
// default is what its target holds when it is added.
//
// A variable means one thing to all commands, since they may share an environment: flags that mean
// different things have a Prefix or a Variable.
type Set struct {
	Cmd      *cobra.Command
	Prefix   string
	Variable string // if set, the whole name of the variable, for a single flag
}

// conventionalEnv is the name of a variable that other tools read as well, or empty.
func conventionalEnv(flag string) string {
	switch flag {
	case "nats-url":
		return "NATS_URL"
	case "nats-creds":
		return "NATS_CREDS"
	case "nats-inbox-prefix":
		return "NATS_INBOX_PREFIX"
	case "endpoint":
		return "USERPILOT_ENDPOINT"
	case "api-key-file":
		return "USERPILOT_API_KEY_FILE"
	}
	return ""
}

func (f Set) env(name string) string {
	if f.Variable != "" {
		return f.Variable
	}
	if env := conventionalEnv(name); env != "" {
		return env
	}
	return "IDENTIFY_" + f.Prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// Add adds a flag of any type.
func (f Set) Add(v pflag.Value, name, usage string) *pflag.Flag {
	env := f.env(name)
	flag := f.Cmd.Flags().VarPF(v, name, "", fmt.Sprintf("%s [$%s]", usage, env))
	flag.Annotations = map[string][]string{envAnnotation: {env}}
	return flag
}

// Variable is the name of a flag's environment variable. It is empty for a flag that cobra added.
func Variable(flag *pflag.Flag) string {
	if names := flag.Annotations[envAnnotation]; len(names) > 0 {
		return names[0]
	}
	return ""
}

// ApplyEnvironment sets flags from the environment, unless they were given.
func ApplyEnvironment(set *pflag.FlagSet, env func(string) string) error {
	var first error
	set.VisitAll(func(flag *pflag.Flag) {
		variable := Variable(flag)
		if flag.Changed || variable == "" {
			return
		}
		text := env(variable)
		if text == "" {
			return
		}
		if err := flag.Value.Set(text); err != nil {
			if first == nil {
				first = Usagef("%s: %w", variable, err)
			}
			return // the others are applied all the same, among them the log's format
		}
		flag.Changed = true
	})
	return first
}

// NewValue makes a flag of any type. parse returns errors that continue a sentence which begins
// with the flag's name: "must be ...".
func NewValue[T any](target *T, kind string, parse func(string) (T, error), format func(T) string) pflag.Value {
	return value[T]{target, kind, parse, format}
}

// value is a flag of any type.
type value[T any] struct {
	target *T
	kind   string
	parse  func(string) (T, error)
	format func(T) string
}

func (v value[T]) Type() string   { return v.kind }
func (v value[T]) String() string { return v.format(*v.target) }

func (v value[T]) Set(text string) error {
	parsed, err := v.parse(text)
	if err != nil {
		return err
	}
	*v.target = parsed
	return nil
}

// Text adds a flag whose value is taken as it is.
func (f Set) Text(target *string, name, kind, usage string) {
	f.Add(value[string]{target, kind, accept, asIs}, name, usage)
}

func accept(text string) (string, error) { return text, nil }
func asIs(text string) string            { return text }

// List adds a flag for texts that are separated by commas. It may be given several times.
func (f Set) List(target *[]string, name, kind, usage string) {
	parse := func(text string) ([]string, error) {
		list := *target
		if text == "" {
			return list, nil
		}
		for part := range strings.SplitSeq(text, ",") {
			list = append(list, strings.TrimSpace(part))
		}
		return list, nil
	}
	format := func(list []string) string { return strings.Join(list, ",") }
	f.Add(value[[]string]{target, kind, parse, format}, name, usage)
}

// Toggle adds a flag that is true or false. Without a value it is true.
func (f Set) Toggle(target *bool, name, usage string) {
	parse := func(text string) (bool, error) {
		on, err := strconv.ParseBool(text)
		if err != nil {
			return false, errors.New("must be true or false")
		}
		return on, nil
	}
	f.Add(value[bool]{target, "bool", parse, strconv.FormatBool}, name, usage).NoOptDefVal = "true"
}

// Number adds a flag for a whole number within bounds.
func (f Set) Number(target *int, lowest, highest int, name, usage string) {
	parse := func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < lowest || n > highest {
			return 0, fmt.Errorf("must be a whole number from %d to %d", lowest, highest)
		}
		return n, nil
	}
	f.Add(value[int]{target, "int", parse, strconv.Itoa}, name, usage)
}

// Part adds a flag for a part of a whole, from 0 to 1.
func (f Set) Part(target *float64, name, usage string) {
	parse := func(text string) (float64, error) {
		part, err := strconv.ParseFloat(text, 64)
		if err != nil || !(part >= 0 && part <= 1) {
			return 0, errors.New("must be a number from 0 to 1, such as 0.1")
		}
		return part, nil
	}
	format := func(part float64) string { return strconv.FormatFloat(part, 'f', -1, 64) }
	f.Add(value[float64]{target, "part", parse, format}, name, usage)
}

// Choice adds a flag that takes one of several words, with shell completion.
func (f Set) Choice(target *string, name, usage string, choices ...string) {
	parse := func(text string) (string, error) {
		if !slices.Contains(choices, text) {
			return "", errors.New("must be " + OneOf(choices))
		}
		return text, nil
	}
	f.Add(value[string]{target, strings.Join(choices, "|"), parse, asIs}, name, usage)
	complete := cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp)
	if err := f.Cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
		panic(err) // the flag was added two lines above
	}
}

// OneOf lists words of which one is to be chosen: "a, b or c".
func OneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// Span adds a flag for a duration above zero.
func (f Set) Span(target *time.Duration, name, usage string) {
	parse := func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return 0, errors.New("must be a duration above 0, such as 500ms, 10s or 1m")
		}
		return d, nil
	}
	f.Add(value[time.Duration]{target, "duration", parse, time.Duration.String}, name, usage)
}

// Wait adds a flag for a duration that may be 0, or forever, which is negative.
func (f Set) Wait(target *time.Duration, name, usage string) {
	parse := func(text string) (time.Duration, error) {
		if text == "forever" {
			return -1, nil
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return 0, errors.New("must be a duration such as 10s, 0 or forever")
		}
		return d, nil
	}
	format := func(d time.Duration) string {
		if d < 0 {
			return "forever"
		}
		return d.String()
	}
	f.Add(value[time.Duration]{target, "duration", parse, format}, name, usage)
}

// Delay adds a flag for a duration that may be 0.
func (f Set) Delay(target *time.Duration, name, usage string) {
	parse := func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return 0, errors.New("must be a duration such as 500ms or 10s, or 0")
		}
		return d, nil
	}
	f.Add(value[time.Duration]{target, "duration", parse, time.Duration.String}, name, usage)
}

// MemberTTL adds a flag for a duration of whole seconds, at least 2; 0 is the default.
func (f Set) MemberTTL(target *time.Duration, name, usage string) {
	parse := func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil || d != 0 && (d < 2*time.Second || d%time.Second != 0) {
			return 0, errors.New("must be whole seconds, 2s or more")
		}
		return d, nil
	}
	f.Add(value[time.Duration]{target, "duration", parse, time.Duration.String}, name, usage)
}

// Rate adds a flag for a number of calls in a window.
func (f Set) Rate(target *ratelimit.Rate, name, usage string) {
	f.Add(value[ratelimit.Rate]{target, "calls/window", ratelimit.ParseRate, ratelimit.Rate.String}, name, usage)
}

// Size adds a flag for a number of bytes, with a minimum.
func (f Set) Size(target *int64, lowest int64, name, usage string) {
	parse := func(text string) (int64, error) {
		n, ok := parseSize(text)
		if !ok || n < lowest {
			return 0, fmt.Errorf("must be a size of %s or more, such as 64MiB", FormatSize(lowest))
		}
		return n, nil
	}
	f.Add(value[int64]{target, "size", parse, FormatSize}, name, usage)
}

// Address adds a flag for the host and port to listen on.
func (f Set) Address(target *string, name, usage string) {
	parse := func(text string) (string, error) {
		_, port, err := net.SplitHostPort(text)
		if n, errPort := strconv.Atoi(port); err != nil || errPort != nil || n < 0 || n > 65535 {
			return "", errors.New("must be host:port, such as 127.0.0.1:8080; port 0 chooses a free one")
		}
		return text, nil
	}
	f.Add(value[string]{target, "host:port", parse, asIs}, name, usage)
}

const sizeUnits = "KMGT"

// parseSize reads a number of bytes such as 512KiB, 64MiB or 1048576.
func parseSize(text string) (bytes int64, ok bool) {
	shift := 0
	if number, found := strings.CutSuffix(text, "iB"); found && number != "" {
		last := len(number) - 1
		shift = 10 * (1 + strings.IndexByte(sizeUnits, number[last]))
		if text = number[:last]; shift == 0 {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > (1<<50)>>shift {
		return 0, false
	}
	return n << shift, true
}

// FormatSize returns the shortest text that parseSize reads as that size.
func FormatSize(bytes int64) string {
	unit := ""
	for i := 0; i < len(sizeUnits) && bytes >= 1024 && bytes%1024 == 0; i++ {
		bytes, unit = bytes/1024, sizeUnits[i:i+1]+"iB"
	}
	return strconv.FormatInt(bytes, 10) + unit
}
