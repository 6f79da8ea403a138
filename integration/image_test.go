package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// images are the tags that the containers start from.
type images struct {
	nats, worker string
}

// buildImages compiles both programs and packs each into an image. They live until remove.
func buildImages(ctx context.Context) (images, error) {
	var built images
	for _, image := range []struct {
		tag                     *string
		name, program, packages string
		files                   []string
	}{
		{&built.nats, "nats", "nats-server", "github.com/nats-io/nats-server/v2", []string{"nats.conf", "cluster.conf"}},
		{&built.worker, "worker", "identify-worker", "../cmd/identify-worker", nil},
	} {
		tag, err := buildImage(ctx, image.name, image.program, image.packages, image.files, nil)
		if err != nil {
			return built, fmt.Errorf("image %s: %w", image.name, err)
		}
		*image.tag = tag
	}
	return built, nil
}

// buildImage packs testdata/<name>.Dockerfile, a program and files of testdata. flags are more
// for go build.
func buildImage(ctx context.Context, name, program, pkg string, files, flags []string) (tag string, err error) {
	dir, err := os.MkdirTemp("", "identify-worker-image-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := compile(ctx, filepath.Join(dir, program), pkg, flags...); err != nil {
		return "", err
	}
	for _, file := range append(files, name+".Dockerfile") {
		content, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
			return "", err
		}
	}
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return "", err
	}
	defer provider.Close()
	return provider.BuildImage(ctx, &testcontainers.ContainerRequest{FromDockerfile: testcontainers.FromDockerfile{
		Context: dir, Dockerfile: name + ".Dockerfile", Repo: "identify-worker-test-" + name,
	}})
}

// compile builds a static program for the containers, with the flags of "make build" so that
// what that has compiled is not compiled again.
func compile(ctx context.Context, output, pkg string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-o", output}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, said)
	}
	return nil
}

// remove deletes the images.
func (i images) remove(ctx context.Context) error { return removeImages(ctx, i.nats, i.worker) }

func removeImages(ctx context.Context, tags ...string) error {
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return err
	}
	defer docker.Close()
	for _, tag := range tags {
		if tag == "" {
			continue
		}
		if _, err := docker.ImageRemove(ctx, tag, client.ImageRemoveOptions{Force: true, PruneChildren: true}); err != nil {
			return err
		}
	}
	return nil
}
