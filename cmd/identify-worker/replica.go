package main

import (
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/worker"
)

// replicaSettings are the flags of one worker replica.
type replicaSettings struct {
	config   worker.Config
	endpoint string
	allowed  []string // hosts that endpoint may name
	insecure bool
	proxy    string
	scope    string
	coalesce bool
	listen   string
}

// newReplica adds the flags of one worker replica.
func newReplica(f flags) *replicaSettings {
	s := &replicaSettings{
		endpoint: userpilot.DefaultEndpoint, scope: "fleet", coalesce: true, listen: "127.0.0.1:8080",
		config: worker.Config{
			Rate: queue.Rate{Calls: 600, Window: time.Minute}, Concurrency: 64, MaxAttempts: 10, Timeout: 10 * time.Second,
			BackoffInitial: 500 * time.Millisecond, BackoffMax: time.Minute, Memory: 64 << 20,
		},
	}
	c := &s.config
	f.text(&s.endpoint, "endpoint", "url", "Userpilot's `address`; EU: https://analytex-eu.userpilot.io")
	f.list(&s.allowed, "allow-endpoint", "host", "`host` that --endpoint may name besides Userpilot's and this machine, or several with commas between")
	f.toggle(&s.insecure, "insecure-endpoint", "allow plain http to other than this machine")
	f.text(&s.proxy, "proxy", "url", "HTTP `proxy` to reach --endpoint through; HTTP_PROXY and the like are ignored")
	f.rate(&c.Rate, "rate", "most calls in any window, such as 600/1m or 10/s; 0 is no limit")
	f.number(&c.Burst, 0, 1000, "burst", "`calls` that may follow at once after a pause; 0 chooses, 3 at 600/1m")
	f.choice(&s.scope, "rate-scope", "whose limit the rate is: all replicas' together, or each one's", "fleet", "replica")
	f.number(&c.Concurrency, 1, 10_000, "concurrency", "most `calls` in flight")
	f.toggle(&s.coalesce, "coalesce", "merge a user's waiting events into one call")
	f.number(&c.MaxAttempts, 1, 1000, "max-attempts", "`attempts` before an event is a dead letter; an outage counts none")
	f.span(&c.Timeout, "timeout", "longest `time` for one call")
	f.span(&c.BackoffInitial, "backoff-initial", "first `pause` of a failing user's events")
	f.span(&c.BackoffMax, "backoff-max", "longest `pause`")
	f.memberTTL(&c.Member.TTL, "member-ttl", "`time` after which a silent replica is replaced; 0 chooses, 5s or 15s with --replicas above 1")
	f.size(&c.Memory, 1<<20, "memory", "`size` of what waits in memory; the rest stays in the stream")
	f.address(&s.listen, "listen", "`address` of /metrics, /livez and /readyz")
	return s
}

// perReplica reports whether the rate is each replica's own.
func (s *replicaSettings) perReplica() bool { return s.scope == "replica" }

// workerConfig is what the flags say of a worker.
func (s *replicaSettings) workerConfig() worker.Config {
	c := s.config
	c.RatePerReplica, c.NoCoalesce = s.perReplica(), !s.coalesce
	return c
}

// check refuses flags that do not go together.
func (s *replicaSettings) check() error {
	c := s.config
	switch {
	case c.BackoffMax < c.BackoffInitial:
		return usage("--backoff-max: must not be below --backoff-initial")
	case !c.Rate.Unlimited() && c.Burst > c.Rate.Calls:
		return usage("--burst: must not be above the calls of --rate")
	}
	return nil
}

// client makes Userpilot's client with the key of now.
func (s *replicaSettings) client(key *keySource) (*userpilot.Client, error) {
	now, err := key.read()
	if err != nil {
		return nil, err
	}
	return s.clientOf(now)
}

// clientOf makes Userpilot's client with a key.
func (s *replicaSettings) clientOf(key userpilot.Key) (*userpilot.Client, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	client, err := userpilot.NewClient(userpilot.ClientConfig{
		Endpoint: s.endpoint, AllowHosts: s.allowed, AllowInsecure: s.insecure, Proxy: s.proxy,
		Key: key, MaxConns: s.config.Concurrency,
	})
	if err != nil {
		return nil, usage("--%w", err)
	}
	return client, nil
}
