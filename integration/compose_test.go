package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// stack is deployments/compose.yaml as a project of its own.
type stack struct {
	t       *testing.T
	compose []string // the command, which has two forms
	env     []string
}

// newStack skips the test without Docker or Compose.
func newStack(t *testing.T) *stack {
	t.Helper()
	built := needImages(t)
	s := &stack{t: t, env: append(os.Environ(),
		"COMPOSE_PROJECT_NAME=identify-test-"+strconv.FormatInt(time.Now().UnixNano(), 36),
		"NATS_IMAGE="+built.nats, "WORKER_IMAGE="+built.worker, "NATS_PORT=0",
	)}
	for _, command := range [][]string{{"docker", "compose"}, {"docker-compose"}} {
		if exec.CommandContext(t.Context(), command[0], append(command[1:], "version")...).Run() == nil {
			s.compose = slices.Concat(command, []string{"-f", "../deployments/compose.yaml", "--ansi", "never"})
			return s
		}
	}
	if dockerRequired() {
		t.Fatal("REQUIRE_DOCKER=1, but Docker Compose is not available")
	}
	t.Skip("needs Docker Compose")
	return nil
}

// run runs a Compose command and returns its output.
func (s *stack) run(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.compose[0], append(s.compose[1:], args...)...)
	var out, err bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = s.env, strings.NewReader(stdin), &out, &err
	if failed := cmd.Run(); failed != nil {
		return out.String(), fmt.Errorf("compose %s: %w\n%s%s", strings.Join(args, " "), failed, out.String(), err.String())
	}
	return out.String(), nil
}

// up starts all services without a profile.
func (s *stack) up() {
	s.t.Helper()
	s.t.Cleanup(func() {
		if s.t.Failed() {
			log, _ := s.run("", "logs", "--no-color")
			keepLog(s.t, "compose", log)
		}
		if _, err := s.run("", "down", "--volumes", "--timeout", "1"); err != nil {
			s.t.Error(err)
		}
	})
	_, err := s.run("", "up", "--detach")
	must(s.t, err)
}

// status is a part of the product's own status.
type status struct {
	Backlog     int                              `json:"backlog"`
	DeadLetters struct{ Total int }              `json:"dead_letters"`
	Partitions  struct{ Unclaimed []string }     `json:"partitions"`
	Replicas    []struct{ Version, Hold string } `json:"replicas"`
}

// TestCompose runs the file as the README describes: three servers, two workers and the stand-in,
// and sends events through them.
func TestCompose(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.up()
	var is status
	look := func() bool {
		text, err := s.run("", "exec", "-T", "worker", "/identify-worker", "status", "--json")
		is = status{}
		return err == nil && json.Unmarshal([]byte(text), &is) == nil
	}
	within(t, time.Minute, "two workers to hold all partitions", func() bool {
		return look() && len(is.Replicas) == 2 && len(is.Partitions.Unclaimed) == 0
	})

	const n, people = 100, 20
	var events strings.Builder
	for i := range n {
		fmt.Fprintf(&events, `{"user_id":"user-%d","metadata":{"n":%d}}`+"\n", i%people, i)
	}
	events.WriteString(`{"user_id":"user-0","company":{"name":"without an id"}}` + "\n")
	said, err := s.run(events.String(), "run", "--rm", "-T", "worker", "publish")
	if err == nil || !strings.Contains(said+err.Error(), "published 100 events") {
		t.Fatalf("publish says %s, %v", said, err)
	}
	within(t, time.Minute, "the events to be delivered", func() bool { return look() && is.Backlog == 0 })
	if is.DeadLetters.Total != 0 {
		t.Errorf("there are %d dead letters", is.DeadLetters.Total)
	}
	for _, r := range is.Replicas {
		if r.Version != version || r.Hold != "" {
			t.Errorf("a replica is %+v", r)
		}
	}
	s.checkStreams()

	_, err = s.run("", "stop", "userpilot")
	must(t, err)
	log, err := s.run("", "logs", "--no-color", "userpilot")
	must(t, err)
	if !strings.Contains(log, fmt.Sprintf(" calls, %d users, at most ", people)) || strings.Contains(log, "answered 4") {
		t.Errorf("the stand-in says:\n%s", log)
	}
}

// checkStreams checks from outside whether the streams have replicas on all servers.
func (s *stack) checkStreams() {
	s.t.Helper()
	address, err := s.run("", "port", "nats-1", "4222")
	must(s.t, err)
	nc, err := nats.Connect("nats://"+strings.TrimSpace(address), nats.IgnoreDiscoveredServers())
	must(s.t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(s.t, err)
	for _, name := range []string{queue.Topology{}.StreamName(), queue.Topology{}.DeadStreamName()} {
		stream, err := js.Stream(s.t.Context(), name)
		must(s.t, err)
		info := stream.CachedInfo()
		if info.Config.Replicas != 3 || info.Cluster == nil || len(info.Cluster.Replicas) != 2 {
			s.t.Errorf("the stream %s has %d copies: %+v", name, info.Config.Replicas, info.Cluster)
		}
	}
}
