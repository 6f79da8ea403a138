//go:build !noembed

package inspector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// workerPermissions are all permissions that a worker needs.
func workerPermissions(t queue.Topology) []jsapi.Permission {
	return slices.Concat(fleet.Permissions(t), deadletter.Permissions(t))
}

// published lists the subjects of all permissions to publish.
func published(permissions []jsapi.Permission) (subjects []string) {
	for _, p := range permissions {
		if !p.Subscribe {
			subjects = append(subjects, p.Subject)
		}
	}
	return subjects
}

// neededRights are the subjects that a worker must be allowed to publish to.
func neededRights() []string {
	return published(slices.DeleteFunc(workerPermissions(queue.Topology{}), func(p jsapi.Permission) bool { return p.Optional }))
}

// everything is a handler that does with each event all that a claim can do.
type everything struct {
	t       *testing.T
	letters *deadletter.Store
	settled chan uint64
}

func (everything) Assign(*fleet.Claim) {}

func (e everything) Revoke(*fleet.Claim) {}

func (e everything) Deliver(c *fleet.Claim, d fleet.Delivery) {
	ctx, made := e.t.Context(), c.StreamCreated()
	event := deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: d.Sequence}}
	past := event
	past.Replay = &deadletter.ReplayInfo{Letter: deadletter.Position{Stream: made, Sequence: 1000 + d.Sequence}, Origin: deadletter.Position{Stream: made, Sequence: 1}}
	for name, do := range map[string]func() error{
		"merge":   func() error { return c.BeginMerged(ctx, "ann", fleet.Extent{Live: d.Sequence}) },
		"exists":  func() error { _, err := c.Exists(ctx, d.Sequence); return err },
		"load":    func() error { _, err := c.Load(ctx, d); return err },
		"outcome": func() error { _, err := e.letters.HasOutcome(ctx, past); return err },
		"bury": func() error {
			death := deadletter.Death{Reason: deadletter.Rejected, User: "ann"}
			_, first := e.letters.Add(ctx, past, []byte("{}"), death)
			_, again := e.letters.Add(ctx, past, []byte("{}"), death)
			return errors.Join(first, again)
		},
		"remember": func() error {
			newer, err := e.letters.Versions(ctx, "ann")
			return errors.Join(err, e.letters.RecordVersions(ctx, "ann", newer, []deadletter.Sent{{Event: event}}, ""))
		},
	} {
		if err := do(); err != nil {
			e.t.Errorf("%s: %v", name, err)
		}
	}
	c.Settle("ann", []fleet.Delivery{d}, func(int) { e.settled <- d.Sequence })
}

// A worker that has exactly the listed permissions does all its work. It was never seen to need the
// optional ones.
func TestWorkerRightsSuffice(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all, few := s.WithUsers(neededRights())
		var mu sync.Mutex
		few.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			mu.Lock()
			defer mu.Unlock()
			// Several replicas look for the account's limit, and do without it.
			if errors.Is(err, nats.ErrPermissionViolation) && !jsapi.IsRefusedReply(err) && !strings.Contains(err.Error(), `"$JS.API.INFO"`) {
				t.Error(err)
			}
		})
		publisher, err := queue.New(all, queue.Topology{}, nil)
		s.Must(err)
		events := make(chan uint64, 100)
		work := func() (stop func()) {
			q, err := queue.New(few, queue.Topology{}, nil)
			s.Must(err)
			_, err = q.Setup(t.Context(), false)
			s.Must(err)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			letters, f := deadletter.NewStore(q), fleet.New(q)
			go func() {
				done <- f.Work(ctx, fleet.MemberConfig{Permissions: workerPermissions(q.Topology()), Prepare: letters.ReadSeal}, everything{t, letters, events})
			}()
			stop = sync.OnceFunc(func() {
				cancel()
				if err := s.worked(done); err != nil {
					t.Error(err)
				}
			})
			t.Cleanup(stop)
			_, err = ratelimit.NewLedger(q, ratelimit.Rate{Calls: 600, Window: time.Minute}, 0, f.Peers()).Take(t.Context(), ratelimit.Demand{Calls: 1})
			s.Must(err)
			s.Must(f.Cooldown().Start(time.Millisecond)(t.Context()))
			return stop
		}
		settled := func() {
			select {
			case <-events:
			case <-time.After(time.Minute):
				t.Fatal("an event is not settled")
			}
		}
		first := work()
		s.publish(publisher, "ann")
		settled()
		second := work() // takes half of the partitions
		time.Sleep(2 * time.Second)
		first() // and then the others
		s.publish(publisher, "ann", "bob", "cleo", "dan")
		for range 4 {
			settled()
		}
		second()
		if status, err := New(publisher).Status(t.Context()); err != nil || status.Backlog != 0 || status.DeadLetters != 5 {
			t.Errorf("got %+v, %v", status, err)
		}
		mu.Lock()
		defer mu.Unlock()
	})
}

// Exactly the missing permission is named, at once; and checking changes nothing.
func TestDenied(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		topology := queue.Topology{Replicas: 3} // there is one server, but only permissions are checked
		subjects := published(workerPermissions(topology))
		users := map[string][]string{"all": {">"}, "a worker": subjects}
		for _, missing := range subjects {
			users[missing] = slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return s == missing })
		}
		connect := s.ServeUsers(users).Connect
		all := connect("all")
		admin, err := queue.New(all, queue.Topology{}, nil)
		s.Must(err)
		s.publish(admin, "ann")
		s.bury(admin, 1, deadletter.Rejected)
		heard, err := all.SubscribeSync(">")
		s.Must(err)
		s.Must(heard.SetPendingLimits(-1, -1))
		before := s.states(admin)
		for user := range users {
			q, err := queue.New(connect(user), topology, nil)
			s.Must(err)
			begun := time.Now()
			denied, err := New(q).MissingPermissions(t.Context(), workerPermissions(q.Topology()))
			s.Must(err)
			var want []string
			if slices.Contains(subjects, user) {
				want = []string{user}
			}
			if took := time.Since(begun); !slices.Equal(published(denied), want) || took > time.Second {
				t.Errorf("%s is missing, after %v denied: %v", user, took, denied)
			}
		}
		if after := s.states(admin); !slices.Equal(before, after) {
			t.Errorf("before %v, after %v", before, after)
		}
		for n, _, _ := heard.Pending(); n > 0; n-- {
			m, err := heard.NextMsgWithContext(t.Context())
			s.Must(err)
			reply := strings.HasPrefix(m.Subject, "$JS.EVENT.") || strings.HasPrefix(m.Subject, "_INBOX.")
			asked := strings.HasPrefix(m.Subject, "$JS.API.STREAM.INFO.") // also used by states
			tried := m.Header.Get("Nats-Expected-Stream") == jsapi.UnknownName && m.Reply == "" && !strings.HasPrefix(m.Subject, "userpilot.")
			if !reply && !asked && !tried {
				t.Errorf("on %s: %s", m.Subject, m.Data)
			}
		}
	})
}

// states returns the contents of all streams, and how often they were written to.
func (s *sim) states(q *queue.Queue) (states []string) {
	s.T.Helper()
	for _, stream := range q.Topology().StreamConfigs(queue.MaxMessageBytes) {
		info := s.info(q, stream.Name)
		states = append(states, fmt.Sprintf("%s: %+v", stream.Name, info.State))
	}
	return states
}

func TestDeniedInbox(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		_, few := s.WithUsers([]string{">", "and.no.inboxes"})
		few.Opts.InboxPrefix = "_MINE"
		q, err := queue.New(few, queue.Topology{}, nil)
		s.Must(err)
		denied, err := New(q).MissingPermissions(t.Context(), workerPermissions(q.Topology()))
		if err != nil || len(denied) != 1 || denied[0].String() != "subscribe to _MINE.>" {
			t.Errorf("denied: %v, %v", denied, err)
		}
		few.Close()
		if _, err := New(q).MissingPermissions(t.Context(), workerPermissions(q.Topology())); err == nil {
			t.Error("on a closed connection")
		}
	})
}

// The list that SECURITY.md links to is the same.
func TestWorkerRightsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../deployments/nats/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range workerPermissions(queue.Topology{Replicas: 3}) {
		if !strings.Contains(string(text), "\n"+r.Subject+"\n") {
			t.Errorf("deployments/nats/README.md does not name %s", r.Subject)
		}
	}
}
