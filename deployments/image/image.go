package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// config returns the same configuration as the Dockerfile's.
func (o options) config() v1.Config {
	const source = "https://github.com/identify-worker/identify-worker"
	label := "org.opencontainers.image."
	return v1.Config{
		User:         "65532:65532",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}},
		Entrypoint:   []string{"/identify-worker"},
		Labels: map[string]string{
			label + "title":         "identify-worker",
			label + "description":   "Delivers identify events from NATS JetStream to Userpilot",
			label + "source":        source,
			label + "documentation": source + "/blob/" + o.version + "/README.md",
			label + "licenses":      "Apache-2.0",
			label + "version":       o.version,
			label + "revision":      o.revision,
			label + "created":       o.created.Format(time.RFC3339),
		},
	}
}

// build makes one platform's image, with a layer for each file.
func (o options) build(platform v1.Platform) (v1.Image, error) {
	config := o.config()
	image, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), &v1.ConfigFile{
		OS: platform.OS, Architecture: platform.Architecture, Created: v1.Time{Time: o.created}, Config: config,
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	for _, file := range []string{"LICENSE", filepath.Join(platform.OS, platform.Architecture, "identify-worker")} {
		packed, err := pack(filepath.Join(o.context, file), o.created)
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(
			func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil },
			tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression))
		if err != nil {
			return nil, err
		}
		history := v1.History{Created: v1.Time{Time: o.created}, CreatedBy: "COPY " + filepath.Base(file)}
		if image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: history}); err != nil {
			return nil, err
		}
	}
	return mutate.Annotations(image, config.Labels).(v1.Image), nil
}

// pack returns a tar archive of one file, which belongs to root and is writable by no one. Of the
// file's own mode only the executable bit counts; the rest depends on the machine.
func pack(file string, modified time.Time) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	header := tar.Header{Typeflag: tar.TypeReg, Name: filepath.Base(file), Mode: 0o444, Size: info.Size(), ModTime: modified, Format: tar.FormatUSTAR}
	if info.Mode()&0o111 != 0 {
		header.Mode = 0o555
	}
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	if err := w.WriteHeader(&header); err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	err = w.Close()
	return buffer.Bytes(), err
}

func emptyIndex() v1.ImageIndex { return mutate.IndexMediaType(empty.Index, types.OCIImageIndex) }

func add(index v1.ImageIndex, image v1.Image, platform v1.Platform) v1.ImageIndex {
	return mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &platform}})
}

// describe prints an image's digest, platform and download size.
func describe(w io.Writer, platform v1.Platform, image v1.Image) error {
	manifest, err := image.Manifest()
	if err != nil {
		return err
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	size := int64(0)
	for _, layer := range manifest.Layers {
		size += layer.Size
	}
	_, err = fmt.Fprintf(w, "%s %s %.1f MB to pull\n", digest, platform, float64(size)/1e6)
	return err
}
