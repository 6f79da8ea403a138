package integration

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/identify-worker/identify-worker/integration/link"
)

// host is this machine's name for containers.
const host = "host.docker.internal"

// Three workers are 150 ms away from NATS and 175 ms from Userpilot, where a connection takes two
// round trips: they use the limit nevertheless, and keep it. A call may begin late by 0.5% of the
// window, so with a window of a minute a machine that is busy has 300 ms for each. It is still too
// late for some where much else runs, so no other test runs meanwhile, and one of three measurements
// must reach the goal: distance alone would spoil all of them.
func TestFarAway(t *testing.T) {
	s := newSystem(t)
	f := s.farAway(link.RoundTrip(150*time.Millisecond, 10*time.Millisecond), link.RoundTrip(175*time.Millisecond, 0))
	const tries, settling, measured, spare = 3, 40, 160, 40 // calls; four seconds, sixteen, and four
	names := users(tries * (settling + measured + spare))
	used := 0.0
	for i := 0; i < tries && used < farGoal; i++ {
		before := s.api.Stats().Calls
		for range settling + measured + spare {
			s.publish(names[0])
			names = names[1:]
		}
		for len(f.workers) < replicas {
			f.startWorker()
		}
		used = f.uses(before+settling, measured)
	}
	// The simulation demands 97%, and so does the benchmark on a quiet machine.
	if used < farGoal {
		t.Errorf("%.1f%% of the limit is used at best, want %.0f%% or more", 100*used, 100*farGoal)
	}
	s.drain()
	s.check()
	// The limit's pace: the burst, a call from each shard of the ledger, and those due by the latest
	// start.
	s.checkLimit(3+16+103, 10*time.Second)
}

// The limit far away, and how much of it must be used.
const (
	farCalls  = 600
	farWindow = time.Minute
	farGoal   = 0.90
)

// uses returns how much of the limit is used by n calls that follow another.
func (d *distant) uses(after, n int) float64 {
	d.t.Helper()
	from := d.callsAt(after)
	took := d.callsAt(after + n).Sub(from)
	used := float64(n) / (took.Seconds() * farCalls / farWindow.Seconds())
	d.t.Logf("%.1f%% of the limit used for %v", 100*used, took)
	return used
}

// distant is a system whose workers reach NATS and the stand-in over networks of their own.
type distant struct {
	*system
	toNATS, toAPI *link.Proxy
	trusted       []byte // the stand-in's certificate
}

// farAway moves NATS and the stand-in away from workers that start from now on.
func (s *system) farAway(nats, api link.Distance) *distant {
	s.t.Helper()
	certificate, trusted, err := link.Certificate(host)
	must(s.t, err)
	socket, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	must(s.t, err)
	server := &http.Server{Handler: s.api, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()
	s.t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	address, err := s.server.PortEndpoint(s.t.Context(), "4222/tcp", "")
	must(s.t, err)
	return &distant{s, s.link(address, nats), s.link(socket.Addr().String(), api), trusted}
}

// link opens a network to a target. It listens on all addresses, as [startAPIWith] does.
func (s *system) link(target string, d link.Distance) *link.Proxy {
	s.t.Helper()
	p, err := link.Listen(":0", target)
	must(s.t, err)
	s.t.Cleanup(p.Close)
	p.Move(d)
	return p
}

// reached returns the address at which containers reach a proxy.
func (d *distant) reached(p *link.Proxy) string {
	d.t.Helper()
	_, port, err := net.SplitHostPort(p.Address())
	must(d.t, err)
	return net.JoinHostPort(host, port)
}

// startWorker starts a replica that trusts the stand-in. The certificate's file is copied into the
// container, so its root file system is not read-only.
func (d *distant) startWorker() {
	d.t.Helper()
	d.workers = append(d.workers, runNode(d.t, d.images.worker,
		network.WithNetwork(nil, d.network),
		testcontainers.WithEnv(map[string]string{
			"NATS_URL":                "nats://" + d.reached(d.toNATS),
			"USERPILOT_API_KEY":       apiKey,
			"USERPILOT_ENDPOINT":      "https://" + d.reached(d.toAPI),
			"IDENTIFY_ALLOW_ENDPOINT": host,
			"IDENTIFY_RATE":           fmt.Sprintf("%d/%v", farCalls, farWindow),
			"IDENTIFY_LISTEN":         ":8080",
			"IDENTIFY_LOG_LEVEL":      "debug",
			"SSL_CERT_FILE":           "/trusted.pem",
		}),
		testcontainers.WithCmd("work"),
		testcontainers.WithFiles(testcontainers.ContainerFile{Reader: bytes.NewReader(d.trusted), ContainerFilePath: "/trusted.pem", FileMode: 0o644}),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) {
			confine(c)
			c.ReadonlyRootfs = false
			c.ExtraHosts = append(c.ExtraHosts, host+":host-gateway")
		}),
		testcontainers.WithExposedPorts("8080/tcp"),
		testcontainers.WithWaitStrategy(wait.ForHTTP("/readyz").WithPort("8080/tcp").WithPollInterval(50*time.Millisecond)),
	))
}

// callsAt blocks until the n-th call, and returns when it came.
func (d *distant) callsAt(n int) time.Time {
	d.t.Helper()
	within(d.t, 2*time.Minute, fmt.Sprintf("call %d", n), func() bool { return d.api.Stats().Calls >= n })
	return d.api.Calls()[n-1].Time
}
