package main

import (
	"archive/tar"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeArchive writes the images and an index of them, and returns the index's digest.
func writeArchive(path, name string, created time.Time, images []image) (digest.Digest, error) {
	blobs := map[digest.Digest][]byte{}
	index := oci.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeImageIndex}
	for _, i := range images {
		maps.Copy(blobs, i.blobs)
		index.Manifests = append(index.Manifests, i.manifest)
	}
	all, err := json.Marshal(index)
	if err != nil {
		return "", err
	}
	d := oci.Descriptor{
		MediaType: oci.MediaTypeImageIndex, Digest: digest.FromBytes(all), Size: int64(len(all)),
		Annotations: map[string]string{oci.AnnotationRefName: name, "io.containerd.image.name": name},
	}
	blobs[d.Digest] = all
	top := index
	top.Manifests = []oci.Descriptor{d}
	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	a := archive{tar: tar.NewWriter(out), modified: created}
	a.addJSON(oci.ImageLayoutFile, oci.ImageLayout{Version: oci.ImageLayoutVersion})
	a.addJSON(oci.ImageIndexFile, top)
	a.addJSON("manifest.json", dockerManifest(name, images))
	for _, d := range slices.Sorted(maps.Keys(blobs)) {
		a.add(blobPath(d), blobs[d])
	}
	if err := a.close(); err != nil {
		_ = out.Close()
		return "", err
	}
	return d.Digest, out.Close()
}

func blobPath(d digest.Digest) string {
	return oci.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// loadable is an image as "docker load" finds it in manifest.json.
type loadable struct {
	Config           string
	RepoTags, Layers []string
}

func dockerManifest(name string, images []image) []loadable {
	var list []loadable
	for _, i := range images {
		l := loadable{Config: blobPath(i.config.Digest), RepoTags: []string{i.name(name)}}
		for _, layer := range i.layers {
			l.Layers = append(l.Layers, blobPath(layer.Digest))
		}
		list = append(list, l)
	}
	return list
}

// archive is a tar file in which nothing depends on when and where it is written. After an
// error it does nothing more.
type archive struct {
	tar      *tar.Writer
	modified time.Time
	err      error
}

func (a *archive) add(name string, content []byte) {
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: a.modified, Format: tar.FormatUSTAR})
	}
	if a.err == nil {
		_, a.err = a.tar.Write(content)
	}
}

func (a *archive) addJSON(name string, value any) {
	content, err := json.Marshal(value)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(name, content)
}

func (a *archive) close() error {
	if a.err != nil {
		return a.err
	}
	return a.tar.Close()
}
