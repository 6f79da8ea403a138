package integration

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
)

// docker is the state that all tests share: whether Docker is available, and the images, built when
// the first test needs them.
type docker struct {
	absent error
	images func() (images, error)
	built  images // by the function images
}

// shared is set once, by TestMain.
var shared docker

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	configure()
	ctx := context.Background()
	shared.absent = ping(ctx)
	shared.images = sync.OnceValues(func() (images, error) {
		built, err := buildImages(ctx)
		shared.built = built
		return built, err
	})
	code := m.Run()
	switch {
	case shared.absent == nil:
		if err := shared.built.remove(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "remove the images:", err)
		}
	case !dockerRequired():
		fmt.Println("SKIPPED: the container tests, because Docker is not available")
	}
	return code
}

func dockerRequired() bool { return os.Getenv("REQUIRE_DOCKER") == "1" }

// configure sets the environment variables of testcontainers that are not set.
func configure() {
	log.SetDefault(log.NewNoopLogger())
	unlessSet := func(name, value string) {
		if os.Getenv(name) == "" {
			_ = os.Setenv(name, value)
		}
	}
	// The reaper is an image that would have to be pulled. Each test cleans up for itself.
	unlessSet("TESTCONTAINERS_RYUK_DISABLED", "true")
	if host := os.Getenv("DOCKER_HOST"); host == "" || strings.HasPrefix(host, "unix:") {
		// In a container testcontainers would take the gateway's address, where nothing listens.
		unlessSet("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
	}
}

// ping returns why Docker cannot be used.
func ping(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil { // testcontainers panics without a socket
			err = fmt.Errorf("%v", r)
		}
	}()
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return err
	}
	defer docker.Close()
	_, err = docker.Ping(ctx, client.PingOptions{})
	return err
}

// needImages returns the images. Without Docker it skips the test, or fails it if REQUIRE_DOCKER is
// 1.
func needImages(t *testing.T) images {
	t.Helper()
	if shared.absent != nil {
		if dockerRequired() {
			t.Fatalf("REQUIRE_DOCKER=1, but Docker is not available: %v", shared.absent)
		}
		t.Skipf("needs Docker: %v", shared.absent)
	}
	built, err := shared.images()
	must(t, err)
	return built
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
