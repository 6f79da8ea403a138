package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build runs the command on a context whose files have this modification time and mode.
func build(t *testing.T, filled time.Time, mode os.FileMode) (output, said string) {
	t.Helper()
	folder := t.TempDir()
	for name, content := range map[string]string{
		"LICENSE": "licence", "linux/amd64/identify-worker": "for amd64", "linux/arm64/identify-worker": "for arm64",
	} {
		path := filepath.Join(folder, filepath.FromSlash(name))
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		bits := mode
		if name == "LICENSE" {
			bits &^= 0o111
		}
		must(t, errors.Join(os.WriteFile(path, []byte(content), bits), os.Chmod(path, bits), os.Chtimes(path, filled, filled)))
	}
	output = t.TempDir()
	var out strings.Builder
	must(t, run([]string{
		"-output", output, "-name", "example.com/worker:v1", "-platform", "linux/amd64", "-platform", "linux/arm64",
		"-version", "v1", "-revision", "abc", "-time", "1700000000", folder,
	}, &out))
	return output, out.String()
}

// files reads all files in a folder.
func files(t *testing.T, folder string) map[string]string {
	t.Helper()
	all := map[string]string{}
	root := os.DirFS(folder)
	must(t, fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(root, path)
		all[path] = string(content)
		return err
	}))
	return all
}

// Two builds give the same bytes, whoever fills the folder and when.
func TestBuildIsReproducible(t *testing.T) {
	t.Parallel()
	one, said := build(t, time.Unix(1, 0), 0o755)
	other, again := build(t, time.Now(), 0o700)
	if first, second := files(t, one), files(t, other); len(first) < 8 || !maps.Equal(first, second) || said != again {
		t.Errorf("two builds differ:\n%s%s", said, again)
	}
}

// The layout to push and the archives for "docker load" hold the same, complete images.
func TestImages(t *testing.T) {
	t.Parallel()
	output, said := build(t, time.Now(), 0o755)
	index, err := layout.ImageIndexFromPath(filepath.Join(output, "layout"))
	must(t, err)
	must(t, validate.Index(index))
	digest, err := index.Digest()
	must(t, err)
	if !strings.HasSuffix(said, digest.String()+" example.com/worker:v1\n") {
		t.Errorf("the index is %s, and it says %s", digest, said)
	}
	manifest, err := index.IndexManifest()
	must(t, err)
	if len(manifest.Manifests) != 2 {
		t.Fatalf("there are %d images, want 2", len(manifest.Manifests))
	}
	for n, arch := range []string{"amd64", "arm64"} {
		image, err := index.Image(manifest.Manifests[n].Digest)
		must(t, err)
		checkImage(t, image, arch)
		if p := manifest.Manifests[n].Platform; p == nil || p.String() != "linux/"+arch {
			t.Errorf("the index says that image %d is for %v", n, p)
		}
		tag, err := name.NewTag("example.com/worker:v1")
		must(t, err)
		loaded, err := tarball.ImageFromPath(filepath.Join(output, "image-"+arch+".tar"), &tag)
		must(t, err)
		checkImage(t, loaded, arch)
	}
}

func checkImage(t *testing.T, image v1.Image, arch string) {
	t.Helper()
	must(t, validate.Image(image))
	config, err := image.ConfigFile()
	must(t, err)
	if config.Architecture != arch || config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{"/identify-worker"}) {
		t.Errorf("the image for %s is for %s and runs %v as %s", arch, config.Architecture, config.Config.Entrypoint, config.Config.User)
	}
	for label, want := range map[string]string{"version": "v1", "revision": "abc", "created": "2023-11-14T22:13:20Z"} {
		if got := config.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("it is labelled %s=%q, want %q", label, got, want)
		}
	}
	layers, err := image.Layers()
	must(t, err)
	found := map[string]string{}
	for _, layer := range layers {
		r, err := layer.Uncompressed()
		must(t, err)
		content, err := io.ReadAll(r)
		must(t, errors.Join(err, r.Close()))
		archive := tar.NewReader(bytes.NewReader(content))
		header, err := archive.Next()
		must(t, err)
		if header.ModTime.Unix() != 1700000000 || header.Uid != 0 || header.Uname != "" || header.Mode&0o222 != 0 {
			t.Errorf("%s: modified at %v, owner %d %q, mode %o", header.Name, header.ModTime, header.Uid, header.Uname, header.Mode)
		}
		text, err := io.ReadAll(archive)
		must(t, err)
		found[header.Name] = string(text)
	}
	if want := map[string]string{"identify-worker": "for " + arch, "LICENSE": "licence"}; !maps.Equal(found, want) {
		t.Errorf("the image for %s holds %q", arch, found)
	}
}

func TestWrongFlags(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                            "give the folder",
		"x":                           "-name: must be a name with a tag",
		"-name a.b:5000/c x":          "-name: must be a name with a tag",
		"-name a:b x":                 "-platform: must be given",
		"-name a:b -platform linux x": "must be like linux/arm64",
		"-time soon x":                "must be a number of seconds",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
