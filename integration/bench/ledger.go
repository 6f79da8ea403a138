package main

import (
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// ledgerLog counts the writes of a fleet into its ledger. It subscribes to the subject and not to
// the stream, so it sees refused writes too. Of several writes that expect the same revision the
// stream accepts one: it has accepted as many as there are different revisions, and the others were
// conflicts.
type ledgerLog struct {
	mu       sync.Mutex
	tries    int
	expected map[string]bool
}

// ledgerCount is how many writes have been tried, and accepted, by a moment.
type ledgerCount struct{ tries, writes int }

func (c ledgerCount) conflicts() int { return c.tries - c.writes }

func (c ledgerCount) less(d ledgerCount) ledgerCount {
	return ledgerCount{c.tries - d.tries, c.writes - d.writes}
}

// watchLedger counts for as long as the site's connection lives.
func (s *site) watchLedger() (*ledgerLog, error) {
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
