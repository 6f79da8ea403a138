package main

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

	"github.com/identify-worker/identify-worker/queue"
)

// envAnnotation holds the name of a flag's environment variable.
const envAnnotation = "identify-worker/env"

// flags adds flags to one command, each with its environment variable: IDENTIFY_, the
// prefix and the flag's name in capitals, or a name that others use too. A flag's
// default is what its variable holds when it is added.
type flags struct {
	cmd    *cobra.Command
	prefix string
}

// conventional names of variables that other tools read as well.
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

func (f flags) env(name string) string {
	if env := conventionalEnv(name); env != "" {
		return env
	}
	return "IDENTIFY_" + f.prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

func (f flags) add(v pflag.Value, name, usage string) *pflag.Flag {
	env := f.env(name)
	flag := f.cmd.Flags().VarPF(v, name, "", fmt.Sprintf("%s [$%s]", usage, env))
	flag.Annotations = map[string][]string{envAnnotation: {env}}
	return flag
}

// applyEnvironment sets the flags that were not given from the environment.
func applyEnvironment(set *pflag.FlagSet, env func(string) string) error {
	var first error
	set.VisitAll(func(flag *pflag.Flag) {
		names := flag.Annotations[envAnnotation]
		if first != nil || flag.Changed || len(names) == 0 {
			return
		}
		text := env(names[0])
		if text == "" {
			return
		}
		if err := flag.Value.Set(text); err != nil {
			first = usage("%s: %w", names[0], err)
			return
		}
		flag.Changed = true
	})
	return first
}

// newValue makes a flag of any type. The errors of parse go on from the flag's name: "must be".
func newValue[T any](target *T, kind string, parse func(string) (T, error), format func(T) string) pflag.Value {
	return value[T]{target, kind, parse, format}
}

// value is a flag of any type. The errors of parse go on from the flag's name: "must be".
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

func (f flags) text(target *string, name, kind, usage string) {
	f.add(value[string]{target, kind, accept, asIs}, name, usage)
}

func accept(text string) (string, error) { return text, nil }
func asIs(text string) string            { return text }

// list is several texts with commas between.
func (f flags) list(target *[]string, name, kind, usage string) {
	parse := func(text string) ([]string, error) {
		if text == "" {
			return nil, nil
		}
		list := strings.Split(text, ",")
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		return list, nil
	}
	format := func(list []string) string { return strings.Join(list, ",") }
	f.add(value[[]string]{target, kind, parse, format}, name, usage)
}

func (f flags) toggle(target *bool, name, usage string) {
	parse := func(text string) (bool, error) {
		on, err := strconv.ParseBool(text)
		if err != nil {
			return false, errors.New("must be true or false")
		}
		return on, nil
	}
	f.add(value[bool]{target, "bool", parse, strconv.FormatBool}, name, usage).NoOptDefVal = "true"
}

func (f flags) number(target *int, lowest, highest int, name, usage string) {
	parse := func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < lowest || n > highest {
			return 0, fmt.Errorf("must be a whole number from %d to %d", lowest, highest)
		}
		return n, nil
	}
	f.add(value[int]{target, "int", parse, strconv.Itoa}, name, usage)
}

func (f flags) choice(target *string, name, usage string, choices ...string) {
	parse := func(text string) (string, error) {
		if !slices.Contains(choices, text) {
			return "", errors.New("must be " + strings.Join(choices, " or "))
		}
		return text, nil
	}
	f.add(value[string]{target, strings.Join(choices, "|"), parse, asIs}, name, usage)
	complete := cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp)
	if err := f.cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
		panic(err) // the flag was added two lines above
	}
}

// span is a time above zero.
func (f flags) span(target *time.Duration, name, usage string) {
	parse := func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return 0, errors.New("must be a time above 0, such as 500ms, 10s or 1m")
		}
		return d, nil
	}
	f.add(value[time.Duration]{target, "duration", parse, time.Duration.String}, name, usage)
}

// wait is a time that may be 0 or for ever, which is below 0.
func (f flags) wait(target *time.Duration, name, usage string) {
	parse := func(text string) (time.Duration, error) {
		if text == "forever" {
			return -1, nil
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return 0, errors.New("must be a time such as 10s, 0 or forever")
		}
		return d, nil
	}
	format := func(d time.Duration) string {
		if d < 0 {
			return "forever"
		}
		return d.String()
	}
	f.add(value[time.Duration]{target, "duration", parse, format}, name, usage)
}

func (f flags) memberTTL(target *time.Duration, name, usage string) {
	parse := func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil || d != 0 && (d < 2*time.Second || d%time.Second != 0) {
			return 0, errors.New("must be whole seconds, 2s or more")
		}
		return d, nil
	}
	f.add(value[time.Duration]{target, "duration", parse, time.Duration.String}, name, usage)
}

func (f flags) rate(target *queue.Rate, name, usage string) { //nolint:unparam // as all the others
	f.add(value[queue.Rate]{target, "calls/window", queue.ParseRate, queue.Rate.String}, name, usage)
}

func (f flags) size(target *int64, lowest int64, name, usage string) {
	parse := func(text string) (int64, error) {
		n, ok := parseSize(text)
		if !ok || n < lowest {
			return 0, fmt.Errorf("must be a size of %s or more, such as 64MiB", formatSize(lowest))
		}
		return n, nil
	}
	f.add(value[int64]{target, "size", parse, formatSize}, name, usage)
}

func (f flags) address(target *string, name, usage string) {
	parse := func(text string) (string, error) {
		_, port, err := net.SplitHostPort(text)
		if n, errPort := strconv.Atoi(port); err != nil || errPort != nil || n < 0 || n > 65535 {
			return "", errors.New("must be host:port, such as 127.0.0.1:8080; port 0 takes a free one")
		}
		return text, nil
	}
	f.add(value[string]{target, "host:port", parse, asIs}, name, usage)
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

// formatSize is the shortest form that parseSize reads.
func formatSize(bytes int64) string {
	unit := ""
	for i := 0; i < len(sizeUnits) && bytes >= 1024 && bytes%1024 == 0; i++ {
		bytes, unit = bytes/1024, sizeUnits[i:i+1]+"iB"
	}
	return strconv.FormatInt(bytes, 10) + unit
}
