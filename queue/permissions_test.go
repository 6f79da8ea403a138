//go:build !noembed

package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// without returns the list without one element.
func without(subjects []string, missing string) []string {
	return slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return s == missing })
}

// eachRight runs f for a user with all of these permissions, and then for users who each lack one
// of them: missing, which is empty for the first. admin may do everything.
func eachRight(t *testing.T, rights []string, f func(t *testing.T, s *sim, admin, operator *Queue, missing string)) {
	for i := -1; i < len(rights); i++ {
		name, missing, granted := "all that it needs", "", rights
		if i >= 0 {
			name, missing, granted = "without "+rights[i], rights[i], without(rights, rights[i])
		}
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				all, few := s.withUsers(granted)
				admin, err := New(all, Topology{}, nil)
				s.must(err)
				operator, err := New(few, Topology{}, nil)
				s.must(err)
				f(t, s, admin, operator, missing)
			})
		})
	}
}

// neededRights are the subjects that a worker must be allowed to publish to.
func neededRights() []string {
	return published(slices.DeleteFunc(Topology{}.WorkerRights(), func(r jsapi.Permission) bool { return r.Optional }))
}

// rightful is a worker whose permissions can change.
type rightful struct {
	*served
	admin *Queue
	r     *replica
}

func (s *sim) rightful(rights []string, flags ...string) *rightful {
	s.t.Helper()
	x := &rightful{served: s.servePeople(people{"all": {">"}, "worker": rights}, flags...)}
	var err error
	x.admin, err = New(x.connect("all"), Topology{}, nil)
	s.must(err)
	x.r = &replica{settling: map[*Claim]int{}}
	x.r.Queue, err = New(x.connect("worker"), Topology{}, slog.New(slog.NewTextHandler(s, nil)))
	s.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.r.Work(ctx, MemberConfig{}, x.r) }()
	s.t.Cleanup(func() {
		cancel()
		s.must(s.worked(done))
	})
	return x
}

// set gives the worker these permissions.
func (x *rightful) set(rights []string, inboxes string) {
	x.sim.t.Helper()
	x.change(people{"all": {">"}, "worker": rights}, inboxes)
}

// A worker that lacks any permission names it at once, does not join, and receives no event that it
// could not settle. It starts working as soon as it has the permission.
func TestWorkerBeginsWithAllRights(t *testing.T) {
	all := neededRights()
	for _, missing := range all {
		t.Run(missing, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				x := s.rightful(without(all, missing))
				s.publish(x.admin, "ann")
				s.await(time.Second, "named", func() bool { return s.logged("allow this NATS user to publish to " + missing + ";") })
				if err := x.r.MissingPermission(); jsapi.AsPermissionError(err) == nil || jsapi.AsPermissionError(err).Subject != missing {
					t.Errorf("it lacks %v", err)
				}
				time.Sleep(30 * time.Second)
				status, err := NewInspector(x.admin).Progress(t.Context())
				s.must(err)
				if len(x.r.received()) > 0 || len(status.Replicas) > 0 || strings.Count(s.log(), "\n") != 1 {
					t.Errorf("it got %v, and %d are in the fleet; it says\n%s", x.r.received(), len(status.Replicas), s.log())
				}
				x.set(all, "_INBOX.>")
				s.await(3*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
				if err := x.r.MissingPermission(); err != nil {
					t.Errorf("it still lacks %v", err)
				}
			})
		})
	}
}

// A worker also names a permission that it loses while it works, even if only a missing answer
// would reveal the loss. It hands over no event that it cannot settle, and loses none.
func TestWorkerLosesARight(t *testing.T) {
	all := neededRights()
	for lost, used := range map[string]time.Duration{ // the longest time between two uses
		"$JS.ACK.USERPILOT_IDENTIFY.>":                   100 * time.Millisecond,
		"$JS.API.CONSUMER.MSG.NEXT.USERPILOT_IDENTIFY.*": jsapi.PullExpiry,
		"$KV.userpilot_identify.>":                       time.Second, // a fifth of the member's TTL
		"$JS.API.STREAM.INFO.USERPILOT_IDENTIFY":         resyncInterval + reconcileInterval,
		"$JS.API.CONSUMER.NAMES.USERPILOT_IDENTIFY":      resyncInterval + reconcileInterval,
	} {
		t.Run(lost, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				x := s.rightful(all)
				s.publish(x.admin, "ann")
				s.await(3*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
				x.set(without(all, lost), "_INBOX.>")
				stopped := make(chan struct{})
				publishing, stop := context.WithCancel(t.Context())
				go func() { // the next event, at the latest, reveals the denial
					defer close(stopped)
					for publishing.Err() == nil {
						s.publish(x.admin, "ann")
						jsapi.Pause(publishing, 100*time.Millisecond)
					}
				}()
				s.await(used+reconcileInterval, "named", func() bool { return s.logged("allow this NATS user to publish to " + lost + ";") })
				s.await(10*time.Second, "out of the fleet", func() bool {
					status, err := NewInspector(x.admin).Progress(t.Context())
					s.must(err)
					return len(status.Replicas) == 0 && x.r.Held() == 0
				})
				got := len(x.r.received())
				time.Sleep(20 * time.Second)
				if more := len(x.r.received()); more != got {
					t.Errorf("%d events more are handed over", more-got)
				}
				stop()
				receive(s, "the end of publishing", stopped)
				x.set(all, "_INBOX.>")
				s.await(5*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
			})
		})
	}
}

// A worker that loses the permission to receive replies, and then regains it, needs a new
// connection.
func TestWorkerLosesItsInboxes(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		all := neededRights()
		x := s.rightful(all)
		s.publish(x.admin, "ann")
		s.await(3*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
		x.set(all, "_OTHER.>")
		s.await(2*time.Second, "named", func() bool {
			return s.logged("allow this NATS user to subscribe to _INBOX.>; or set --nats-inbox-prefix ")
		})
		s.publish(x.admin, "ann")
		time.Sleep(20 * time.Second)
		x.set(all, "_INBOX.>")
		s.await(10*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
	})
}

// Servers may use other reply subjects for settlement. A worker without permission for them does
// not work there.
func TestWorkerSettlesByNewAcks(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all := neededRights()
		x := s.rightful(all, "js_ack_fc_v2")
		s.publish(x.admin, "ann")
		s.await(5*time.Second, "named", func() bool { return s.logged("allow this NATS user to publish to $JS.ACK.*.*.USERPILOT_IDENTIFY.>;") })
		time.Sleep(20 * time.Second)
		if got := x.r.received(); len(got) > 0 {
			t.Errorf("it got %v", got)
		}
		x.set(append(slices.Clone(all), "$JS.ACK.*.*.USERPILOT_IDENTIFY.>"), "_INBOX.>")
		s.await(5*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
	})
}

// A publisher that may publish for no user gets an error for each event, and soon.
func TestPublishersAreDeniedTogether(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		few := s.servePeople(people{"few": {"userpilot.other.*"}}).connect("few")
		q, err := New(few, Topology{}, nil)
		s.must(err)
		p := q.NewPublisher(PublisherConfig{})
		begun := time.Now()
		var results []*Result
		for i := range 3000 {
			r, err := p.PublishAsync(t.Context(), fmt.Appendf(nil, `{"user_id":"u%d"}`, i))
			s.must(err)
			results = append(results, r)
		}
		for _, r := range results {
			_, err := r.Wait(t.Context())
			if denied := jsapi.AsPermissionError(err); denied == nil || denied.Subject != "userpilot.identify.*" || !errors.Is(err, jsapi.ErrNotPermitted) {
				t.Fatalf("got %v", err)
			}
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("it took %v", took)
		}
		s.must(p.Close(t.Context()))
	})
}

// A client that may not receive replies gets an error that says so.
func TestWithoutInboxes(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		few := people{"few": {"userpilot.identify.*", "$JS.API.STREAM.INFO.*"}}
		x := s.servePeople(few)
		x.change(few, "_MINE.>")
		q, err := New(x.connect("few"), Topology{}, nil)
		s.must(err)
		p := q.NewPublisher(PublisherConfig{})
		_, err = p.Publish(t.Context(), []byte(`{"user_id":"ann"}`))
		if denied := jsapi.AsPermissionError(err); denied == nil || *denied != (jsapi.PermissionError{Subject: "_INBOX.>", Subscribe: true}) {
			t.Errorf("got %v", err)
		}
		for range 2 { // the server reports it once, but it still applies
			begun := time.Now()
			_, err = NewInspector(q).Status(t.Context())
			if denied := jsapi.AsPermissionError(err); denied == nil || !denied.Subscribe || time.Since(begun) > time.Second {
				t.Errorf("after %v: %v", time.Since(begun), err)
			}
		}
		s.must(p.Close(t.Context()))
	})
}

// A permitted but slow request is not mistaken for a denied one, even if another request was
// denied.
func TestSlowIsNotDenied(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		few := s.servePeople(people{"few": {"allowed"}}).connect("few")
		q, err := New(few, Topology{}, nil)
		s.must(err)
		may, err := q.api.IsPermitted(t.Context(), jsapi.ToPublish("other"))
		if err != nil || may {
			t.Fatalf("other may be published to: %v, %v", may, err)
		}
		slow := func(ctx context.Context) error { jsapi.Pause(ctx, 3*jsapi.DenialTimeout); return ctx.Err() }
		s.must(q.api.WithPermissionCheck(t.Context(), slow, jsapi.ToPublish("allowed")))
		begun := time.Now()
		err = q.api.WithPermissionCheck(t.Context(), slow, jsapi.ToPublish("allowed"), jsapi.ToPublish("other"))
		if denied := jsapi.AsPermissionError(err); denied == nil || denied.Subject != "other" || time.Since(begun) > 2*jsapi.DenialTimeout {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}
