package integration

import (
	"context"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// TestImage checks the image as it is released: it is small, has no root user and nothing to write
// to, and is the same whether Docker or deployments/image has built it.
func TestImage(t *testing.T) {
	t.Parallel()
	built := needImages(t)
	docker, err := testcontainers.NewDockerClientWithOpts(t.Context())
	must(t, err)
	defer docker.Close()
	inspect := func(tag string) image.InspectResponse {
		t.Helper()
		result, err := docker.ImageInspect(t.Context(), tag)
		must(t, err)
		return result.InspectResponse
	}
	is := inspect(built.worker)
	if is.Size > 26e6 {
		t.Errorf("the image has %d bytes, want at most 26 MB", is.Size)
	}
	if is.Config.User != "65532:65532" || is.Config.Labels["org.opencontainers.image.version"] != version {
		t.Errorf("the image runs as %q, and is labelled %v", is.Config.User, is.Config.Labels)
	}
	packed := inspect(pack(t, built.worker))
	for _, labels := range []map[string]string{is.Config.Labels, packed.Config.Labels} {
		maps.DeleteFunc(labels, func(name, _ string) bool { // only one of the two knows the time, and testcontainers adds labels
			return name == "org.opencontainers.image.created" || strings.HasPrefix(name, "org.testcontainers")
		})
	}
	if packed.Config.User != is.Config.User || !slices.Equal(packed.Config.Entrypoint, is.Config.Entrypoint) || packed.Os != is.Os || packed.Architecture != is.Architecture ||
		!maps.Equal(packed.Config.ExposedPorts, is.Config.ExposedPorts) || !maps.Equal(packed.Config.Labels, is.Config.Labels) {
		t.Errorf("Docker built %+v,\nand deployments/image %+v", is.Config, packed.Config)
	}
	for _, tag := range []string{built.worker, packed.RepoTags[0]} {
		c := runNode(t, tag, testcontainers.WithCmd("version"), testcontainers.WithWaitStrategy(wait.ForExit()), testcontainers.WithHostConfigModifier(confine))
		if said := c.log(t.Context()); !strings.Contains(said, "identify-worker "+version+" go1.") {
			t.Errorf("%s says %q", tag, said)
		}
	}
}

// confine denies a container everything that the product does not need.
func confine(c *container.HostConfig) {
	c.ReadonlyRootfs = true
	c.CapDrop = []string{"ALL"}
	c.SecurityOpt = []string{"no-new-privileges:true"}
}

// pack builds the image again without Docker, from the program in another image, and loads it.
func pack(t *testing.T, from string) (tag string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, filepath.FromSlash(platform), "identify-worker")
	must(t, os.MkdirAll(filepath.Dir(program), 0o755))
	c := runNode(t, from, testcontainers.WithCmd("version"), testcontainers.WithWaitStrategy(wait.ForExit()))
	r, err := c.CopyFileFromContainer(t.Context(), "/identify-worker")
	must(t, err)
	defer r.Close()
	content, err := io.ReadAll(r)
	must(t, err)
	must(t, os.WriteFile(program, content, 0o755))
	licence, err := os.ReadFile("../LICENSE")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "LICENSE"), licence, 0o644))
	output := t.TempDir()
	name := "identify-worker-test-packed:" + strings.ToLower(filepath.Base(output))
	said, err := exec.CommandContext(t.Context(), "go", "run", "../deployments/image", "-output", output,
		"-name", name, "-platform", platform, "-version", version, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("pack: %v\n%s", err, said)
	}
	docker, err := testcontainers.NewDockerClientWithOpts(t.Context())
	must(t, err)
	t.Cleanup(func() { _ = docker.Close() })
	file, err := os.Open(filepath.Join(output, "image-"+strings.TrimPrefix(platform, "linux/")+".tar"))
	must(t, err)
	defer file.Close()
	loaded, err := docker.ImageLoad(t.Context(), file)
	must(t, err)
	_, err = io.Copy(io.Discard, loaded)
	must(t, err)
	must(t, loaded.Close())
	t.Cleanup(func() { must(t, removeImages(context.Background(), name)) })
	return name
}
