package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
)

// build runs the command in a folder that was filled at some time by somebody.
func build(t *testing.T, filled time.Time, mode os.FileMode) (archive []byte, said string) {
	t.Helper()
	folder := t.TempDir()
	for name, content := range map[string]string{
		"LICENSE": "licence", "linux/amd64/identify-worker": "for amd64", "linux/arm64/identify-worker": "for arm64",
	} {
		path := filepath.Join(folder, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		bits := mode
		if name == "LICENSE" {
			bits &^= 0o111
		}
		if err := errors.Join(os.WriteFile(path, []byte(content), bits), os.Chmod(path, bits), os.Chtimes(path, filled, filled)); err != nil {
			t.Fatal(err)
		}
	}
	output := filepath.Join(t.TempDir(), "image.tar")
	var out strings.Builder
	err := run([]string{
		"-file", filepath.Join("..", "Dockerfile"), "-output", output, "-name", "example.com/worker:v1", "-platform", "linux/amd64", "-platform", "linux/arm64",
		"-arg", "VERSION=v1", "-arg", "REVISION=abc", "-time", "1700000000", folder,
	}, &out)
	if err != nil {
		t.Fatal(err)
	}
	archive, err = os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	return archive, out.String()
}

// Two builds are one digest, whoever fills the folder and when.
func TestBuildIsReproducible(t *testing.T) {
	t.Parallel()
	one, said := build(t, time.Unix(1, 0), 0o755)
	other, again := build(t, time.Now(), 0o700)
	if !bytes.Equal(one, other) || said != again {
		t.Errorf("two builds differ:\n%s%s", said, again)
	}
}

// files reads a tar file.
func files(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for reader := tar.NewReader(r); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.ModTime.Unix() != 1700000000 || header.Uid != 0 || header.Uname != "" {
			t.Errorf("%s: of %v, by %d %q", header.Name, header.ModTime, header.Uid, header.Uname)
		}
		if all[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
}

// TestArchive follows the archive as those do who pull the image, and as "docker load" does.
func TestArchive(t *testing.T) {
	t.Parallel()
	archive, said := build(t, time.Now(), 0o755)
	all := files(t, bytes.NewReader(archive))
	read := func(path string, value any) {
		t.Helper()
		content, ok := all[path]
		if name := filepath.Base(path); len(name) == 64 && digest.FromBytes(content).Encoded() != name {
			t.Errorf("%s holds %s", path, digest.FromBytes(content))
		}
		if err := json.Unmarshal(content, value); !ok || err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	var top, index oci.Index
	read("index.json", &top)
	if !strings.HasSuffix(said, top.Manifests[0].Digest.String()+" example.com/worker:v1\n") {
		t.Errorf("the index is %s, and it says %s", top.Manifests[0].Digest, said)
	}
	read(blobPath(top.Manifests[0].Digest), &index)
	var docker []loadable
	read("manifest.json", &docker)
	if len(index.Manifests) != 2 || len(docker) != 2 {
		t.Fatalf("there are %d and %d images, want 2", len(index.Manifests), len(docker))
	}
	for n, arch := range []string{"amd64", "arm64"} {
		var manifest oci.Manifest
		var config oci.Image
		read(blobPath(index.Manifests[n].Digest), &manifest)
		read(blobPath(manifest.Config.Digest), &config)
		if config.Architecture != arch || index.Manifests[n].Platform.Architecture != arch || config.Config.User != "65532:65532" {
			t.Errorf("image %d is for %s, as %s", n, config.Architecture, config.Config.User)
		}
		if d := docker[n]; d.Config != blobPath(manifest.Config.Digest) || !slices.Equal(d.RepoTags, []string{"example.com/worker:v1-" + arch}) {
			t.Errorf("docker load finds %+v", d)
		}
		content := map[string][]byte{}
		for l, layer := range manifest.Layers {
			unpacked, err := gzip.NewReader(bytes.NewReader(all[docker[n].Layers[l]]))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(unpacked)
			if err != nil {
				t.Fatal(err)
			}
			if config.RootFS.DiffIDs[l] != digest.FromBytes(text) || docker[n].Layers[l] != blobPath(layer.Digest) {
				t.Errorf("layer %d of image %d is not what the configuration says", l, n)
			}
			maps.Copy(content, files(t, bytes.NewReader(text)))
		}
		if string(content["identify-worker"]) != "for "+arch || string(content["LICENSE"]) != "licence" {
			t.Errorf("the image for %s holds %q", arch, content)
		}
	}
}

func TestWrongFlags(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                            "give the folder",
		"x":                           "-name: must be a name with a tag",
		"-name a.b:5000/c x":          "-name: must be a name with a tag",
		"-name a:b x":                 "-platform: none is given",
		"-name a:b -platform linux x": "must be like linux/arm64",
		"-time soon x":                "must be a number of seconds",
		"-arg A x":                    "must be NAME=VALUE",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
