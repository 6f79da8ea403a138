package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// publisher publishes until it is stopped. It retries each event with the same message id until the
// event is acknowledged; the user's next event waits for that.
type publisher struct {
	s      settings
	judge  *judge
	nc     *nats.Conn
	js     jetstream.JetStream
	keyed  *queue.Publisher
	pace   *rate.Limiter
	flood  atomic.Int64 // events of the flood that are still to be published
	pad    string
	random *rand.Rand // for the seeds of the publishing goroutines
}

// These must not appear in any output: the users' domain, and the beginning of their ids as a
// subject encodes them.
const (
	userDomain  = "@chaos.example"
	userEncoded = "dXNlci0" // user-
)

func userName(i int) string { return fmt.Sprintf("user-%05d%s", i, userDomain) }

// publishing is how many users' events are in flight at once.
const publishing = 24

func newPublisher(s settings, j *judge, nc *nats.Conn, random *rand.Rand) (*publisher, error) {
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	p := &publisher{
		s: s, judge: j, nc: nc, js: js, keyed: q.NewPublisher(queue.PublisherConfig{}),
		pace: rate.NewLimiter(rate.Limit(s.pace), max(publishing, s.series)), random: random,
		pad: `,"pad":"` + strings.Repeat(`\u00e9`, s.large) + `"`,
	}
	p.flood.Store(int64(s.flood))
	return p, nil
}

// rise begins a flood of backfill.
func (p *publisher) rise(context.Context, *rand.Rand) { p.flood.Store(int64(p.s.flood)) }

// The publisher of some users cannot encode a key, and so has no backfill; others have live events only;
// and some of the rest take part in floods.
func isPlain(user int) bool     { return user%8 == 0 }
func hasBackfill(user int) bool { return user%8 > 1 }
func takesFloods(user int) bool { return hasBackfill(user) && user%2 == 0 }

// run publishes until the context until ends. It blocks until all its events are acknowledged, or
// ctx ends.
func (p *publisher) run(ctx, until context.Context) {
	var wg sync.WaitGroup
	for i := range publishing {
		random := rand.New(rand.NewPCG(p.random.Uint64(), uint64(i)))
		wg.Go(func() {
			for until.Err() == nil && ctx.Err() == nil {
				p.series(ctx, until, random, i)
			}
		})
	}
	wg.Wait()
}

// series publishes some consecutive events of one of the i-th goroutine's users.
func (p *publisher) series(ctx, until context.Context, random *rand.Rand, i int) {
	mine := (p.s.users - i + publishing - 1) / publishing
	if mine <= 0 {
		pause(until, time.Hour)
		return
	}
	user := i + publishing*random.IntN(mine)
	if takesFloods(user) && p.flood.Add(-1) >= 0 {
		p.next(ctx, random, user, true)
		return
	}
	if p.judge.backlog() > p.s.waiting+p.s.flood {
		pause(until, 50*time.Millisecond)
		return
	}
	backfill := hasBackfill(user) && p.s.backfill > 0 && random.IntN(p.s.backfill) == 0
	for range 1 + random.IntN(p.s.series) {
		if p.pace.Wait(until) != nil {
			return
		}
		p.next(ctx, random, user, backfill)
		if p.s.invalid > 0 && random.IntN(p.s.invalid) == 0 {
			p.nonsense(ctx, random)
		}
	}
}

// farewell publishes one more event of each user, so that every partition must be worked.
func (p *publisher) farewell(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range publishing {
		random := rand.New(rand.NewPCG(p.s.seed, uint64(i)))
		wg.Go(func() {
			for user := i; user < p.s.users && ctx.Err() == nil; user += publishing {
				p.next(ctx, random, user, false)
			}
		})
	}
	wg.Wait()
}

// next publishes a user's next event.
func (p *publisher) next(ctx context.Context, random *rand.Rand, user int, backfill bool) {
	name := userName(user)
	event := p.event(random)
	event.Backfill = backfill
	body, n := p.judge.intend(name, event)
	id := fmt.Sprintf("%s/%d", name, n)
	options := []queue.PublishOption{queue.WithMessageID(id)}
	if backfill {
		options = append(options, queue.AsBackfill())
	}
	send := func() error {
		_, err := p.keyed.Publish(ctx, body, options...)
		return err
	}
	if isPlain(user) {
		header := p.header(random)
		send = func() error { return p.plain(ctx, id, header, body) }
	}
	if crashes, ok := p.retry(ctx, send); ok {
		p.judge.stored(name, event, body, crashes)
	}
}

// event returns an event that may be poison, and may carry a pad of s.large letters, each escaped.
func (p *publisher) event(random *rand.Rand) oracle.Event {
	e := oracle.Event{Varied: true}
	if p.s.poison > 0 && random.IntN(p.s.poison) == 0 {
		e.Dies, e.More = deadletter.Rejected, `,"bad":true`
	}
	if p.s.large > 0 && random.IntN(4) == 0 {
		e.More += p.pad
	}
	return e
}

// nonsense publishes an event that is not an identify. [queue.Publisher] would refuse it.
func (p *publisher) nonsense(ctx context.Context, random *rand.Rand) {
	id := fmt.Sprintf("nonsense-%016x", random.Uint64())
	kinds := []string{`{"user_id":"","metadata":{"id":%q}}`, `no JSON: %q`, `{"metadata":{"id":%q}}`, `{"user_id":"x","company":{"name":%q}}`}
	body := fmt.Appendf(nil, kinds[random.IntN(len(kinds))], id)
	header := p.header(random)
	crashes, ok := p.retry(ctx, func() error { return p.plain(ctx, id, header, body) })
	if ok {
		p.judge.storedInvalid(body, crashes)
	}
}

// header returns the headers of an event besides its id.
func (p *publisher) header(random *rand.Rand) nats.Header {
	if p.s.faults.hostile == 0 || random.IntN(2) == 0 {
		return nats.Header{}
	}
	return disguise(random)
}

func (p *publisher) plain(ctx context.Context, id string, header nats.Header, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	header.Set(nats.MsgIdHdr, id)
	_, err := p.js.PublishMsg(ctx, &nats.Msg{Subject: (queue.Topology{}).PlainSubject(), Data: body, Header: header})
	return err
}

// retry calls send until it succeeds. crashes is how often the server died meanwhile: a server that
// dies forgets the message ids of events that have left the stream, and may store an event twice.
func (p *publisher) retry(ctx context.Context, send func() error) (crashes int, ok bool) {
	before := p.judge.crashesSoFar()
	for ctx.Err() == nil {
		err := send()
		if err == nil {
			return p.judge.crashesSoFar() - before, true
		}
		if errors.Is(err, nats.ErrConnectionClosed) {
			break
		}
		pause(ctx, 50*time.Millisecond)
	}
	return 0, false
}
