package main

import (
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// ledgerLog counts what a fleet writes into its ledger. It listens beside the stream, and so
// hears refused writes too. Of those that expect the same revision the stream takes one:
// as many as there are revisions have been taken, the others met a conflict.
type ledgerLog struct {
	mu       sync.Mutex
	tries    int
	expected map[string]bool
}

// ledgerCount is what has been tried, and taken, up to a moment.
type ledgerCount struct{ tries, writes int }

func (c ledgerCount) conflicts() int { return c.tries - c.writes }

func (c ledgerCount) less(d ledgerCount) ledgerCount {
	return ledgerCount{c.tries - d.tries, c.writes - d.writes}
}

// hearLedger listens for as long as the site's connection lives.
func (s *site) hearLedger() (*ledgerLog, error) {
	l := &ledgerLog{expected: map[string]bool{}}
	_, err := s.nc.Subscribe("$KV."+queue.Topology{}.Bucket()+".ledger.*", func(m *nats.Msg) {
		l.add(m.Subject, m.Header.Get(jetstream.ExpectedLastSubjSeqHeader))
	})
	return l, err
}

func (l *ledgerLog) add(shard, revision string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries++
	l.expected[shard+" "+revision] = true
}

func (l *ledgerLog) count() ledgerCount {
	l.mu.Lock()
	defer l.mu.Unlock()
	return ledgerCount{l.tries, len(l.expected)}
}
