package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	oci "github.com/opencontainers/image-spec/specs-go/v1"
)

// ours reads the product's Dockerfile.
func ours(t *testing.T) recipe {
	t.Helper()
	source, err := os.ReadFile(filepath.Join("..", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := readDockerfile(string(source), "linux/arm64", time.Unix(1700000000, 0).UTC(), map[string]string{"VERSION": "v1.2.3", "REVISION": "abc"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	r := ours(t)
	if want := []copied{{"LICENSE", "LICENSE"}, {"linux/arm64/identify-worker", "identify-worker"}}; !slices.Equal(r.copies, want) {
		t.Errorf("it copies %v, want %v", r.copies, want)
	}
	if r.config.User != "65532:65532" || !slices.Equal(r.config.Entrypoint, []string{"/identify-worker"}) {
		t.Errorf("it runs %v as %q", r.config.Entrypoint, r.config.User)
	}
	for _, label := range []string{
		oci.AnnotationTitle, oci.AnnotationDescription, oci.AnnotationSource, oci.AnnotationDocumentation, oci.AnnotationLicenses,
	} {
		if r.config.Labels[label] == "" {
			t.Errorf("there is no label %s", label)
		}
	}
	for label, want := range map[string]string{
		oci.AnnotationVersion: "v1.2.3", oci.AnnotationRevision: "abc", oci.AnnotationCreated: "2023-11-14T22:13:20Z",
	} {
		if got := r.config.Labels[label]; got != want {
			t.Errorf("%s is %q, want %q", label, got, want)
		}
	}
}

func TestDockerfileRefused(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"FROM debian":                              "line 1: FROM: must begin FROM scratch",
		"USER 1":                                   "line 1: USER: must begin FROM scratch",
		"FROM scratch\nFROM scratch":               "line 2: FROM: is not understood here",
		"FROM scratch\n\n# no shell\nRUN true":     "line 4: RUN: is not understood here",
		"FROM scratch\nENTRYPOINT /x":              "line 2: ENTRYPOINT: must be a JSON list",
		"FROM scratch\nCOPY a b /":                 "line 2: COPY: must be one file",
		"FROM scratch\nCOPY a /b/c":                "line 2: COPY: must be one file",
		"FROM scratch\nCOPY a b":                   "line 2: COPY: must be one file",
		"FROM scratch\nCOPY --chown=1 a /a":        "line 2: COPY: must be one file",
		"FROM scratch\nUSER ${NOBODY}":             "line 2: USER: NOBODY is no ARG",
		"FROM scratch\nLABEL a=b":                  `line 2: LABEL: must be pairs of key="value"`,
		"FROM scratch\nLABEL \\\n a=\"b\" \\\n c":  `line 4: LABEL: must be pairs of key="value"`,
		"FROM scratch\nARG A":                      "there is no ENTRYPOINT",
		"FROM scratch\nENTRYPOINT [\"/x\"]":        "there is no ARG A",
		"FROM scratch\nARG A\nENTRYPOINT [\"/x\"]": "",
	} {
		_, err := readDockerfile(source, "linux/amd64", time.Now(), map[string]string{"A": "1"})
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", source, err, want)
		}
	}
}
