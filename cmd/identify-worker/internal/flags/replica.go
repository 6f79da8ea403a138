package flags

import (
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/worker"
)

// Replica has the settings of one worker replica.
type Replica struct {
	Config   worker.Config
	Endpoint string
	allowed  []string // hosts that endpoint may name
	insecure bool
	proxy    string
	scope    string
	coalesce bool
	Listen   string
}

// NewReplica adds the flags of one worker replica.
func NewReplica(f Set) *Replica {
	s := &Replica{
		Endpoint: userpilot.DefaultEndpoint, scope: "fleet", coalesce: true, Listen: "127.0.0.1:8080",
		Config: worker.Config{
			Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}, Concurrency: 64, MaxAttempts: 10, Timeout: 10 * time.Second,
			BackoffInitial: 500 * time.Millisecond, BackoffMax: time.Minute, Memory: 64 << 20,
		},
	}
	c := &s.Config
	f.Text(&s.Endpoint, "endpoint", "url", "Userpilot's `address`; EU: https://analytex-eu.userpilot.io")
	f.List(&s.allowed, "allow-endpoint", "host", "`host` to allow in --endpoint besides Userpilot's and this machine, or several separated by commas")
	f.Toggle(&s.insecure, "insecure-endpoint", "allow plain http to other machines")
	f.Text(&s.proxy, "proxy", "url", "HTTP `proxy` for --endpoint; HTTP_PROXY and similar variables are ignored")
	f.Rate(&c.Rate, "rate", "maximum calls in any window, such as 600/1m or 10/s; 0 means no limit")
	f.Number(&c.Burst, 0, 1000, "burst", "`calls` allowed in a burst after a pause; 0 chooses a value, 3 at 600/1m")
	f.Choice(&s.scope, "rate-scope", "whether the rate limits the whole fleet or each replica", "fleet", "replica")
	f.Number(&c.Concurrency, 1, 10_000, "concurrency", "maximum `calls` in flight; calls that wait longer than 1s make room for more, up to 4 times as many")
	f.Part(&c.BackfillShare, "backfill-share", "`part` of the calls that backfill gets even if live events would use all, from 0 to 1")
	f.Toggle(&s.coalesce, "coalesce", "merge a user's waiting events into one call")
	f.Number(&c.MaxAttempts, 1, 1000, "max-attempts", "`attempts` before an event becomes a dead letter; attempts in an outage do not count")
	f.Span(&c.Timeout, "timeout", "maximum `time` for one call")
	f.Span(&c.BackoffInitial, "backoff-initial", "first `delay` before a failed call is retried")
	f.Span(&c.BackoffMax, "backoff-max", "maximum `delay` between retries")
	f.MemberTTL(&c.Member.TTL, "member-ttl", "`time` without a heartbeat after which a replica is replaced; 0 chooses 5s, or 15s if --replicas is above 1")
	f.Size(&c.Memory, 1<<20, "memory", "maximum `size` of waiting events in memory; the rest stays in the stream")
	f.Address(&s.Listen, "listen", "`address` of /metrics, /livez and /readyz")
	return s
}

// PerReplica reports whether each replica has the rate for itself.
func (s *Replica) PerReplica() bool { return s.scope == "replica" }

// WorkerConfig returns the configuration of a worker, without what it connects to.
func (s *Replica) WorkerConfig() worker.Config {
	c := s.Config
	c.RatePerReplica, c.NoCoalesce = s.PerReplica(), !s.coalesce
	return c
}

// check refuses flags that contradict one another.
func (s *Replica) check() error {
	c := s.Config
	switch {
	case c.BackoffMax < c.BackoffInitial:
		return Usagef("--backoff-max: must not be below --backoff-initial")
	case !c.Rate.Unlimited() && c.Burst > c.Rate.Calls:
		return Usagef("--burst: must not be above the calls of --rate")
	}
	return nil
}

// Client makes Userpilot's client with the current key.
func (s *Replica) Client(key *KeySource) (*userpilot.Client, error) {
	now, err := key.Read()
	if err != nil {
		return nil, err
	}
	return s.ClientWith(now)
}

// ClientWith makes Userpilot's client with a given key.
func (s *Replica) ClientWith(key userpilot.Key) (*userpilot.Client, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	client, err := userpilot.NewClient(userpilot.ClientConfig{
		Endpoint: s.Endpoint, AllowHosts: s.allowed, AllowInsecure: s.insecure, Proxy: s.proxy,
		Key: key, MaxConns: s.Config.Concurrency,
	})
	if err != nil {
		return nil, Usagef("--%w", err)
	}
	return client, nil
}
