package integration

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// node is a running container.
type node struct {
	t *testing.T
	*testcontainers.DockerContainer
}

// runNode starts a container and blocks until it is ready. The container and its volumes are
// removed when the test ends; the log of a failed test is kept as an artifact.
func runNode(t *testing.T, image string, options ...testcontainers.ContainerCustomizer) *node {
	t.Helper()
	c, err := testcontainers.Run(t.Context(), image, options...)
	testcontainers.CleanupContainer(t, c, testcontainers.StopTimeout(0))
	n := &node{t: t, DockerContainer: c}
	t.Cleanup(func() {
		if t.Failed() && c != nil {
			keepLog(t, image, n.log(context.Background()))
		}
	})
	must(t, err)
	return n
}

// keepLog writes a log to the test's artifacts and says where ("go test -artifacts" keeps it). In
// the output, thousands of its lines would bury the failure.
func keepLog(t *testing.T, of, text string) {
	f, err := os.CreateTemp(t.ArtifactDir(), strings.NewReplacer("/", "_", ":", "_").Replace(of)+"-*.log")
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
		t.Logf("the log of %s is in %s", of, f.Name())
	}
	if err != nil {
		t.Logf("cannot keep the log of %s: %v", of, err)
	}
}

// kill sends SIGKILL. It blocks until the process is gone.
func (n *node) kill() {
	n.t.Helper()
	n.signal("KILL")
	n.wait()
}

// signal sends a signal to the process.
func (n *node) signal(name string) {
	n.t.Helper()
	docker, err := testcontainers.NewDockerClientWithOpts(n.t.Context())
	must(n.t, err)
	defer docker.Close()
	_, err = docker.ContainerKill(n.t.Context(), n.ID, client.ContainerKillOptions{Signal: name})
	must(n.t, err)
}

// freeze stops the process, as on a sleeping machine: its connections stay open. thaw resumes it.
func (n *node) freeze() { n.t.Helper(); n.signal("STOP") }
func (n *node) thaw()   { n.t.Helper(); n.signal("CONT") }

// cut takes the node off its network, without closing its connections. heal puts it back.
func (n *node) cut(network string) (heal func()) {
	n.t.Helper()
	docker, err := testcontainers.NewDockerClientWithOpts(n.t.Context())
	must(n.t, err)
	n.t.Cleanup(func() { _ = docker.Close() })
	_, err = docker.NetworkDisconnect(n.t.Context(), network, client.NetworkDisconnectOptions{Container: n.ID, Force: true})
	must(n.t, err)
	return func() {
		n.t.Helper()
		_, err := docker.NetworkConnect(n.t.Context(), network, client.NetworkConnectOptions{Container: n.ID})
		must(n.t, err)
	}
}

// wait blocks until the process has ended, and returns its exit status.
func (n *node) wait() (status int) {
	n.t.Helper()
	within(n.t, time.Minute, "the process to end", func() bool {
		state, err := n.State(n.t.Context())
		must(n.t, err)
		status = state.ExitCode
		return !state.Running
	})
	return status
}

// start starts the node again after kill, with its disk, and blocks until it is ready. Its ports on
// the host change.
func (n *node) start() {
	n.t.Helper()
	must(n.t, n.Start(n.t.Context()))
}

// began returns when the process was last started.
func (n *node) began() time.Time {
	n.t.Helper()
	state, err := n.State(n.t.Context())
	must(n.t, err)
	at, err := time.Parse(time.RFC3339Nano, state.StartedAt)
	must(n.t, err)
	return at
}

func (n *node) log(ctx context.Context) string {
	r, err := n.Logs(ctx)
	if err != nil {
		return err.Error()
	}
	defer r.Close()
	text, _ := io.ReadAll(r) // a partial log is better than none
	return string(text)
}

// dialer connects to a port of the containers wherever Docker maps it to now, so that a client can
// reconnect after a restart.
type dialer struct {
	nodes map[string]*node // by their names in the network
	port  string
}

// Dial takes the container's name from the address and ignores its port.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	address, err = d.nodes[name].PortEndpoint(ctx, d.port, "")
	if err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// within blocks until the condition holds, and fails the test if it does not in time.
func within(t testing.TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v for %s", limit, what)
		}
	}
}
