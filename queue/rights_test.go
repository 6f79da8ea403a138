//go:build !noembed

package queue

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

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// published lists the subjects of all permissions to publish.
func published(rights []jsapi.Permission) (subjects []string) {
	for _, r := range rights {
		if !r.Subscribe {
			subjects = append(subjects, r.Subject)
		}
	}
	return subjects
}

// everything is a handler that does with each event all that a claim can do.
type everything struct {
	t       *testing.T
	letters *Store
	settled chan uint64
}

func (everything) Assign(*Claim) {}

func (e everything) Revoke(*Claim) {}

func (e everything) Deliver(c *Claim, d Delivery) {
	ctx, made := e.t.Context(), c.StreamCreated()
	event := Event{Name: Position{made, d.Sequence}}
	past := event
	past.Replay = &ReplayInfo{Letter: Position{made, 1000 + d.Sequence}, Origin: Position{made, 1}}
	for name, do := range map[string]func() error{
		"merge":   func() error { return c.BeginMerged(ctx, "ann", d.Sequence) },
		"exists":  func() error { _, err := c.Exists(ctx, d.Sequence); return err },
		"load":    func() error { _, err := c.Load(ctx, d); return err },
		"outcome": func() error { _, err := e.letters.HasOutcome(ctx, past); return err },
		"bury": func() error {
			death := Death{Reason: Rejected, User: "ann"}
			return errors.Join(e.letters.Add(ctx, past, []byte("{}"), death), e.letters.Add(ctx, past, []byte("{}"), death))
		},
		"remember": func() error {
			newer, err := e.letters.Versions(ctx, "ann")
			return errors.Join(err, e.letters.RecordVersions(ctx, "ann", newer, []Sent{{Event: event}}))
		},
	} {
		if err := do(); err != nil {
			e.t.Errorf("%s: %v", name, err)
		}
	}
	c.Settle("ann", []Delivery{d}, func(int) { e.settled <- d.Sequence })
}

// A worker that has exactly the listed permissions does all its work. It was never seen to need the
// optional ones.
func TestWorkerRightsSuffice(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all, few := s.withUsers(neededRights())
		var mu sync.Mutex
		few.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, nats.ErrPermissionViolation) && !jsapi.IsRefusedReply(err) {
				t.Error(err)
			}
		})
		publisher, err := New(all, Topology{}, nil)
		s.must(err)
		events := make(chan uint64, 100)
		work := func() (stop func()) {
			q, err := New(few, Topology{}, nil)
			s.must(err)
			_, err = q.Setup(t.Context(), false)
			s.must(err)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			letters := NewStore(q)
			go func() { done <- q.Work(ctx, MemberConfig{Prepare: letters.ReadSeal}, everything{t, letters, events}) }()
			stop = sync.OnceFunc(func() {
				cancel()
				if err := s.worked(done); err != nil {
					t.Error(err)
				}
			})
			t.Cleanup(stop)
			_, err = q.NewLedger(Rate{600, time.Minute}, 0).Take(t.Context(), 1)
			s.must(err)
			s.must(q.StartCooldown(time.Millisecond)(t.Context()))
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
		if status, err := NewInspector(publisher).Status(t.Context()); err != nil || status.Backlog != 0 || status.DeadLetters != 5 {
			t.Errorf("got %+v, %v", status, err)
		}
		mu.Lock()
		defer mu.Unlock()
	})
}

// Exactly the missing permission is named, at once; and checking changes nothing.
func TestDenied(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		topology := Topology{Replicas: 3} // there is one server, but only permissions are checked
		subjects := published(topology.WorkerRights())
		users := map[string][]string{"all": {">"}, "a worker": subjects}
		for _, missing := range subjects {
			users[missing] = slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return s == missing })
		}
		connect := s.serveUsers(users)
		all := connect("all")
		admin, err := New(all, Topology{}, nil)
		s.must(err)
		s.publish(admin, "ann")
		s.bury(admin, 1, Rejected)
		heard, err := all.SubscribeSync(">")
		s.must(err)
		s.must(heard.SetPendingLimits(-1, -1))
		before := s.states(admin)
		for user := range users {
			q, err := New(connect(user), topology, nil)
			s.must(err)
			begun := time.Now()
			denied, err := NewInspector(q).MissingPermissions(t.Context())
			s.must(err)
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
			s.must(err)
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
func (s *sim) states(q *Queue) (states []string) {
	s.t.Helper()
	for _, stream := range q.topology.streams(MaxMessageBytes) {
		info := s.info(q, stream.Name)
		states = append(states, fmt.Sprintf("%s: %+v", stream.Name, info.State))
	}
	return states
}

func TestDeniedInbox(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		_, few := s.withUsers([]string{">", "and.no.inboxes"})
		few.Opts.InboxPrefix = "_MINE"
		q, err := New(few, Topology{}, nil)
		s.must(err)
		denied, err := NewInspector(q).MissingPermissions(t.Context())
		if err != nil || len(denied) != 1 || denied[0].String() != "subscribe to _MINE.>" {
			t.Errorf("denied: %v, %v", denied, err)
		}
		few.Close()
		if _, err := NewInspector(q).MissingPermissions(t.Context()); err == nil {
			t.Error("on a closed connection")
		}
	})
}

// The list that SECURITY.md links to is the same.
func TestWorkerRightsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../deployments/nats/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range (Topology{Replicas: 3}).WorkerRights() {
		if !strings.Contains(string(text), "\n"+r.Subject+"\n") {
			t.Errorf("deployments/nats/README.md does not name %s", r.Subject)
		}
	}
}
