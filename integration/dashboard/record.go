package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

const (
	fleetSize = 3
	fleetRate = "600/1m"
)

// stage is the system that is recorded: NATS and the stand-in for Userpilot are in this process,
// the replicas and Prometheus have their own.
type stage struct {
	options
	dir, nats string
	api       *userpilottest.Server
	publisher *queue.Publisher
	addresses []string // of the replicas' metrics
	replicas  []*exec.Cmd
	children  sync.WaitGroup
}

// record runs the fleet's bad day under a Prometheus, and shows that before it ends.
func (o options) record(ctx context.Context, show func(url string) error) (err error) {
	s := &stage{options: o}
	if s.dir, err = os.MkdirTemp("", "dashboard-"); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		s.children.Wait()
		err = errors.Join(err, os.RemoveAll(s.dir))
	}()
	server, err := embedded.Start(embedded.Config{Dir: filepath.Join(s.dir, "nats"), Listen: "127.0.0.1:0", NoSync: true})
	if err != nil {
		return err
	}
	defer server.Shutdown()
	s.nats = server.ClientURL()
	nc, err := server.Connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		return err
	}
	if _, err := q.Setup(ctx, false); err != nil {
		return err
	}
	s.publisher = q.NewPublisher(queue.PublisherConfig{})
	s.api = userpilottest.New(userpilottest.Options{Latency: 80 * time.Millisecond})
	if err := s.api.Start(); err != nil {
		return err
	}
	defer s.api.Close()
	url, err := s.raise(ctx)
	if err != nil {
		return err
	}
	if err := s.play(ctx); err != nil {
		return err
	}
	return show(url)
}

// raise starts the replicas and Prometheus, and returns the latter's address.
func (s *stage) raise(ctx context.Context) (url string, err error) {
	for range fleetSize + 1 {
		address, err := freeAddress()
		if err != nil {
			return "", err
		}
		s.addresses = append(s.addresses, address)
	}
	s.replicas = make([]*exec.Cmd, fleetSize)
	for i := range s.replicas {
		if err := s.startReplica(ctx, i); err != nil {
			return "", err
		}
	}
	config := filepath.Join(s.dir, "prometheus.yaml")
	if err := os.WriteFile(config, []byte(s.scrapes()), 0o600); err != nil {
		return "", err
	}
	address := s.addresses[fleetSize]
	_, err = s.spawn(ctx, nil, s.program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(s.dir, "tsdb"), "--web.listen-address="+address, "--log.level=error")
	return "http://" + address, err
}

// scrapes is Prometheus's configuration.
func (s *stage) scrapes() string {
	rules, _ := filepath.Abs("deployments/prometheus/alerts.yaml")
	var text strings.Builder
	fmt.Fprintf(&text, "global: {scrape_interval: %s, evaluation_interval: %s}\nrule_files: [%q]\nscrape_configs:\n- job_name: %s\n  static_configs:\n",
		s.step, s.step, rules, s.job)
	for i := range s.replicas {
		fmt.Fprintf(&text, "  - {targets: [%q], labels: {instance: worker-%d}}\n", s.addresses[i], i+1)
	}
	return text.String()
}

func (s *stage) startReplica(ctx context.Context, i int) (err error) {
	s.replicas[i], err = s.spawn(ctx, []string{"USERPILOT_API_KEY=any"}, s.worker, "work", "--nats-url", s.nats,
		"--endpoint", s.api.URL(), "--rate", fleetRate, "--listen", s.addresses[i])
	return err
}

// spawn starts a program that dies with ctx.
func (s *stage) spawn(ctx context.Context, env []string, program string, args ...string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	if env != nil && os.Getenv("VERBOSE") == "" {
		cmd.Stderr = nil
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	s.children.Go(func() { _ = cmd.Wait() })
	return cmd, nil
}

// freeAddress is one that nobody listens on just now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
