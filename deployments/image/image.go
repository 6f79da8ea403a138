package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // of the digests
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is one platform's.
type image struct {
	platform oci.Platform
	manifest oci.Descriptor
	config   oci.Descriptor
	layers   []oci.Descriptor
	blobs    map[digest.Digest][]byte // of all of these

	packed, unpacked int // bytes of the layers
}

// name is what an engine knows the image as that keeps one platform under a name.
func (i image) name(of string) string { return of + "-" + i.platform.Architecture }

// build makes a layer of each file.
func (r recipe) build(context, platform string, created time.Time) (image, error) {
	system, arch, _ := strings.Cut(platform, "/")
	i := image{platform: oci.Platform{OS: system, Architecture: arch}, blobs: map[digest.Digest][]byte{}}
	config := oci.Image{Created: &created, Platform: i.platform, Config: r.config, RootFS: oci.RootFS{Type: "layers"}}
	for _, c := range r.copies {
		unpacked, err := layer(filepath.Join(context, filepath.FromSlash(c.from)), c.to, created)
		if err != nil {
			return i, err
		}
		packed, err := pack(unpacked)
		if err != nil {
			return i, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(unpacked))
		config.History = append(config.History, oci.History{Created: &created, CreatedBy: "COPY " + c.to})
		i.layers = append(i.layers, i.add(oci.MediaTypeImageLayerGzip, packed))
		i.packed, i.unpacked = i.packed+len(packed), i.unpacked+len(unpacked)
	}
	var err error
	if i.config, err = i.addJSON(oci.MediaTypeImageConfig, config); err != nil {
		return i, err
	}
	i.manifest, err = i.addJSON(oci.MediaTypeImageManifest, oci.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeImageManifest,
		Config: i.config, Layers: i.layers, Annotations: r.config.Labels,
	})
	i.manifest.Platform = &i.platform
	return i, err
}

func (i image) add(mediaType string, blob []byte) oci.Descriptor {
	d := oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	i.blobs[d.Digest] = blob
	return d
}

func (i image) addJSON(mediaType string, value any) (oci.Descriptor, error) {
	blob, err := json.Marshal(value)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return i.add(mediaType, blob), nil
}

// layer is a tar of one file, which belongs to root and can be written by nobody. Of the
// file's own attributes only that it is executable counts: the others are the machine's.
func layer(file, name string, modified time.Time) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	header := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: int64(len(content)), ModTime: modified, Format: tar.FormatUSTAR}
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

func pack(content []byte) ([]byte, error) {
	var buffer bytes.Buffer
	w, err := gzip.NewWriterLevel(&buffer, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	err = w.Close()
	return buffer.Bytes(), err
}
