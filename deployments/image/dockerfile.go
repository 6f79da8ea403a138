package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	oci "github.com/opencontainers/image-spec/specs-go/v1"
)

// recipe is what a Dockerfile says, for one platform.
type recipe struct {
	copies []copied
	config oci.ImageConfig
}

// copied is one file: its path in the context, and its name in the image's root.
type copied struct{ from, to string }

// readDockerfile follows a Dockerfile. args are the values for ARG; TARGETPLATFORM and CREATED
// have theirs from the build itself.
func readDockerfile(source, platform string, created time.Time, args map[string]string) (recipe, error) {
	given := maps.Clone(args)
	given["TARGETPLATFORM"], given["CREATED"] = platform, created.Format(time.RFC3339)
	r := reader{given: given, known: map[string]string{}}
	r.config.Labels = map[string]string{}
	number, statement := 0, ""
	for line := range strings.Lines(source) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		line, more := strings.CutSuffix(line, `\`)
		if statement += line; more {
			continue
		}
		instruction, rest, _ := strings.Cut(statement, " ")
		if err := r.follow(instruction, strings.TrimSpace(rest)); err != nil {
			return r.recipe, fmt.Errorf("line %d: %s: %w", number, instruction, err)
		}
		statement = ""
	}
	for name := range args {
		if _, ok := r.known[name]; !ok {
			return r.recipe, fmt.Errorf("there is no ARG %s", name)
		}
	}
	if len(r.config.Entrypoint) == 0 {
		return r.recipe, errors.New("there is no ENTRYPOINT")
	}
	return r.recipe, nil
}

type reader struct {
	recipe
	given map[string]string // for ARG
	known map[string]string // by ARG
	begun bool
}

func (r *reader) follow(instruction, rest string) (err error) {
	if !r.begun {
		if r.begun = instruction == "FROM" && rest == "scratch"; !r.begun {
			return errors.New("must begin FROM scratch")
		}
		return nil
	}
	if instruction == "ARG" {
		r.declare(rest)
		return nil
	}
	rest = os.Expand(rest, func(name string) string {
		value, ok := r.known[name]
		if !ok {
			err = fmt.Errorf("%s is no ARG", name)
		}
		return value
	})
	if err != nil {
		return err
	}
	switch instruction {
	case "LABEL":
		return r.label(rest)
	case "COPY":
		return r.copy(rest)
	case "USER":
		r.config.User = rest
	case "EXPOSE":
		r.config.ExposedPorts = map[string]struct{}{rest + "/tcp": {}}
	case "ENTRYPOINT":
		if json.Unmarshal([]byte(rest), &r.config.Entrypoint) != nil {
			return errors.New("must be a JSON list, for there is no shell")
		}
	default:
		return errors.New("is not understood here")
	}
	return nil
}

func (r *reader) declare(rest string) {
	name, value, _ := strings.Cut(rest, "=")
	if given, ok := r.given[name]; ok {
		value = given
	}
	r.known[name] = value
}

func (r *reader) copy(rest string) error {
	from, to, ok := strings.Cut(rest, " ")
	name, inRoot := strings.CutPrefix(strings.TrimSpace(to), "/")
	if !ok || !inRoot || name == "" || strings.ContainsAny(name, "/ ") || strings.HasPrefix(from, "-") {
		return errors.New("must be one file and its path, right below /")
	}
	r.copies = append(r.copies, copied{from: path.Clean(from), to: name})
	return nil
}

var labelPair = regexp.MustCompile(`^([^\s="]+)=("(?:[^"\\]|\\.)*")\s*`)

// label reads pairs of key="value".
func (r *reader) label(rest string) error {
	for rest != "" {
		m := labelPair.FindStringSubmatch(rest)
		if m == nil {
			return errors.New(`must be pairs of key="value"`)
		}
		value, err := strconv.Unquote(m[2])
		if err != nil {
			return fmt.Errorf("%s: %w", m[1], err)
		}
		r.config.Labels[m[1]] = value
		rest = rest[len(m[0]):]
	}
	return nil
}
