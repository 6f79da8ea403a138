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

// images are the tags of the containers' images.
type images struct {
	nats, worker string
}

// blueprint describes how to build an image: a Dockerfile and the files of its context.
type blueprint struct {
	name, dockerfile string
	program, pkg     string   // path of the program in the context, and its package
	flags            []string // further flags for go build
	files            []string // in addition to the program
	args             map[string]string
	version          string // of the program's module; empty is what go.mod pins
}

// natsServer is the server from the module that go.mod pins, or of the version that
// NATS_SERVER_VERSION names, such as v2.11.0.
func natsServer() blueprint {
	return blueprint{
		version: os.Getenv("NATS_SERVER_VERSION"),
		name:    "nats", dockerfile: "testdata/nats.Dockerfile", program: "nats-server", pkg: "github.com/nats-io/nats-server/v2",
		files: []string{"testdata/nats.conf", "testdata/cluster.conf"},
	}
}

// product is the image that is released.
func product(flags ...string) blueprint {
	return blueprint{
		name: "worker", dockerfile: "../deployments/Dockerfile", program: platform + "/identify-worker", pkg: "../cmd/identify-worker",
		flags: append([]string{"-ldflags", "-s -w -X main.version=" + version}, flags...), files: []string{"../LICENSE"},
		args: map[string]string{"TARGETPLATFORM": platform, "VERSION": version},
	}
}

const (
	platform = "linux/" + runtime.GOARCH
	version  = "v0.0.0-integration"
)

// buildImages compiles both programs and packs each into an image. The images exist until remove.
func buildImages(ctx context.Context) (images, error) {
	var built images
	for tag, b := range map[*string]blueprint{&built.nats: natsServer(), &built.worker: product()} {
		var err error
		if *tag, err = b.build(ctx); err != nil {
			return built, fmt.Errorf("image %s: %w", b.name, err)
		}
	}
	return built, nil
}

func (b blueprint) build(ctx context.Context) (tag string, err error) {
	dir, err := os.MkdirTemp("", "identify-worker-image-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if b.version != "" {
		err = install(ctx, dir, b.pkg+"@"+b.version)
	} else {
		err = compile(ctx, filepath.Join(dir, b.program), b.pkg, b.flags...)
	}
	if err != nil {
		return "", err
	}
	for _, file := range append(b.files, b.dockerfile) {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), content, 0o644); err != nil {
			return "", err
		}
	}
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return "", err
	}
	defer provider.Close()
	args := map[string]*string{}
	for name, value := range b.args {
		args[name] = &value
	}
	return provider.BuildImage(ctx, &testcontainers.ContainerRequest{FromDockerfile: testcontainers.FromDockerfile{
		Context: dir, Dockerfile: filepath.Base(b.dockerfile), Repo: "identify-worker-test-" + b.name,
		BuildArgs: args,
	}})
}

// compile builds a static program for the containers, with the flags of "make build" to share its
// build cache: the build tag is for the servers, too, because the product contains one.
func compile(ctx context.Context, output, pkg string, flags ...string) error {
	args := append([]string{"build", "-tags", "nethttpomithttp2", "-trimpath", "-o", output}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, said)
	}
	return nil
}

// install builds a static program of another version than go.mod's into a folder.
func install(ctx context.Context, dir, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "install", pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOBIN="+dir)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go install %s: %w\n%s", pkg, err, said)
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
