// Command image builds a Dockerfile that begins FROM scratch, for several platforms, without
// Docker. What it writes depends on its input alone: the same files and flags give the same
// bytes and so the same digests, on every machine that has the same Go.
//
// Docker's own builders can do that since BuildKit 0.13, and need an emulator or the
// containerd image store for another platform than their own. A base image is what makes a
// builder large, and this image has none.
//
// It understands what such a Dockerfile needs, and refuses everything else: ARG, LABEL, COPY of
// single files, USER, EXPOSE and ENTRYPOINT.
//
// The result is an OCI image layout in a tar file, with an index of all platforms. "docker load"
// reads it too, also an old one, which knows the images as NAME-ARCH.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// options are what a build depends on, besides the files in the context.
type options struct {
	context, dockerfile, output string

	name      string // such as example.com/worker:v1.2.3
	platforms []string
	args      map[string]string
	created   time.Time // of the images and of every file in them
}

func parse(args []string) (options, error) {
	o := options{args: map[string]string{}, created: time.Unix(0, 0).UTC()}
	set := flag.NewFlagSet("image", flag.ContinueOnError)
	set.SetOutput(io.Discard) // the error says it
	set.StringVar(&o.dockerfile, "file", "Dockerfile", "the Dockerfile")
	set.StringVar(&o.output, "output", "image.tar", "the tar file to write")
	set.StringVar(&o.name, "name", "", "the image's name, with a tag")
	set.Func("platform", "a platform such as linux/arm64; may be given several times", func(text string) error {
		if os, arch, ok := strings.Cut(text, "/"); !ok || os == "" || arch == "" || strings.Contains(arch, "/") {
			return errors.New("must be like linux/arm64")
		}
		o.platforms = append(o.platforms, text)
		return nil
	})
	set.Func("arg", "a value for ARG, as NAME=VALUE; may be given several times", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return errors.New("must be NAME=VALUE")
		}
		o.args[name] = value
		return nil
	})
	set.Func("time", "the time that is written everywhere, as seconds since 1970", func(text string) error {
		var seconds int64
		if _, err := fmt.Sscan(text, &seconds); err != nil {
			return errors.New("must be a number of seconds")
		}
		o.created = time.Unix(seconds, 0).UTC()
		return nil
	})
	if err := set.Parse(args); err != nil {
		return o, err
	}
	switch {
	case set.NArg() != 1:
		return o, errors.New("give the folder that COPY copies from")
	case o.name == "" || !strings.Contains(filepath.Base(o.name), ":"):
		return o, errors.New("-name: must be a name with a tag")
	case len(o.platforms) == 0:
		return o, errors.New("-platform: none is given")
	}
	o.context = set.Arg(0)
	return o, nil
}

func run(args []string, stdout io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	source, err := os.ReadFile(o.dockerfile)
	if err != nil {
		return err
	}
	var images []image
	for _, platform := range o.platforms {
		r, err := readDockerfile(string(source), platform, o.created, o.args)
		if err != nil {
			return fmt.Errorf("%s: %w", o.dockerfile, err)
		}
		built, err := r.build(o.context, platform, o.created)
		if err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		images = append(images, built)
	}
	digest, err := writeArchive(o.output, o.name, o.created, images)
	if err != nil {
		return fmt.Errorf("write %s: %w", o.output, err)
	}
	for _, i := range images {
		fmt.Fprintf(stdout, "%s %s %.1f MB, %.1f MB to pull\n", i.manifest.Digest, i.name(o.name), float64(i.unpacked)/1e6, float64(i.packed)/1e6)
	}
	fmt.Fprintf(stdout, "%s %s\n", digest, o.name)
	return nil
}
