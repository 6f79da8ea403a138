package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const workerPackage = "github.com/identify-worker/identify-worker/cmd/identify-worker"

// programs are the paths of the programs under test.
type programs struct{ worker, server string }

// build builds both programs in a directory. more are additional flags for the worker's build.
func build(ctx context.Context, dir string, more []string) (programs, error) {
	p := programs{worker: filepath.Join(dir, "identify-worker"), server: filepath.Join(dir, "nats-server")}
	if err := goBuild(ctx, p.worker, workerPackage, more...); err != nil {
		return p, err
	}
	return p, goBuild(ctx, p.server, "github.com/nats-io/nats-server/v2")
}

// goBuild builds one package as for a release, and so shares the cache of "make build". go.mod pins the
// version of nats-server.
func goBuild(ctx context.Context, path, pkg string, more ...string) error {
	args := append([]string{"build", "-tags", "nethttpomithttp2", "-trimpath", "-ldflags", "-s -w", "-o", path}, more...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, output)
	}
	return nil
}
