// Command image packs the product for several platforms, without Docker. Its output depends only on
// its input: the same files and flags give the same digests, on every machine with the same version
// of Go.
//
// The Dockerfile in deployments is for those who have Docker. A test compares the two results.
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

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// options are the input of a build, in addition to the files in the context.
type options struct {
	context, output   string
	name              string // such as example.com/worker:v1.2.3
	platforms         []v1.Platform
	version, revision string
	created           time.Time // of the images and of every file in them
}

func parse(args []string) (options, error) {
	o := options{created: time.Unix(0, 0).UTC()}
	set := flag.NewFlagSet("image", flag.ContinueOnError)
	set.SetOutput(io.Discard) // the returned error says the same
	set.StringVar(&o.output, "output", ".", "the folder to write into: image-ARCH.tar for \"docker load\", and layout, an OCI image layout with an index of all platforms")
	set.StringVar(&o.name, "name", "", "the image's name, with a tag")
	set.Func("platform", "a platform such as linux/arm64; may be given several times", func(text string) error {
		p, err := v1.ParsePlatform(text)
		if err != nil || p.OS == "" || p.Architecture == "" {
			return errors.New("must be like linux/arm64")
		}
		o.platforms = append(o.platforms, *p)
		return nil
	})
	set.StringVar(&o.version, "version", "devel", "the version to label it with")
	set.StringVar(&o.revision, "revision", "", "the commit to label it with")
	set.Func("time", "the time of the images and of all files, in seconds since 1970", func(text string) error {
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
		return o, errors.New("give the folder that contains LICENSE and OS/ARCH/identify-worker")
	case !strings.Contains(filepath.Base(o.name), ":"):
		return o, errors.New("-name: must be a name with a tag")
	case len(o.platforms) == 0:
		return o, errors.New("-platform: must be given")
	}
	o.context = set.Arg(0)
	return o, nil
}

func run(args []string, stdout io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(o.name)
	if err != nil {
		return fmt.Errorf("-name: %w", err)
	}
	index := emptyIndex()
	for _, platform := range o.platforms {
		image, err := o.build(platform)
		if err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		index = add(index, image, platform)
		if err := tarball.WriteToFile(filepath.Join(o.output, "image-"+platform.Architecture+".tar"), tag, image); err != nil {
			return err
		}
		if err := describe(stdout, platform, image); err != nil {
			return err
		}
	}
	folder := filepath.Join(o.output, "layout")
	if err := os.RemoveAll(folder); err != nil { // the layout would be appended to it
		return err
	}
	if _, err := layout.Write(folder, index); err != nil {
		return err
	}
	digest, err := index.Digest()
	fmt.Fprintln(stdout, digest, o.name)
	return err
}
