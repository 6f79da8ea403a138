//go:build !noembed

package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// without returns the list without one element.
func without(subjects []string, missing string) []string {
	return slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return s == missing })
}

// published lists the subjects of all permissions to publish.
func published(rights []jsapi.Permission) (subjects []string) {
	for _, r := range rights {
		if !r.Subscribe {
			subjects = append(subjects, r.Subject)
		}
	}
	return subjects
}

// neededRights are the subjects that a worker must be allowed to publish to.
func neededRights() []string {
	return published(slices.DeleteFunc(Permissions(queue.Topology{}), func(r jsapi.Permission) bool { return r.Optional }))
}

// rightful is a worker whose permissions can change.
type rightful struct {
	*sim
	*queuetest.Auth
	admin *pipeline
	r     *replica
}

func (s *sim) rightful(rights []string, flags ...string) *rightful {
	s.T.Helper()
	x := &rightful{sim: s, Auth: s.ServeUsers(queuetest.Users{"all": {">"}, "worker": rights}, flags...)}
	q, err := queue.New(x.Connect("all"), queue.Topology{}, nil)
	s.Must(err)
	x.admin = open(q)
	x.r = &replica{settling: map[*Claim]int{}}
	q, err = queue.New(x.Connect("worker"), queue.Topology{}, slog.New(slog.NewTextHandler(s, nil)))
	s.Must(err)
	x.r.pipeline = open(q)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.r.Work(ctx, MemberConfig{}, x.r) }()
	s.T.Cleanup(func() {
		cancel()
		s.Must(s.worked(done))
	})
	return x
}

// set gives the worker these permissions.
func (x *rightful) set(rights []string, inboxes string) {
	x.T.Helper()
	x.Change(queuetest.Users{"all": {">"}, "worker": rights}, inboxes)
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
				s.Await(time.Second, "named", func() bool { return s.Logged("allow this NATS user to publish to " + missing + ";") })
				if err := x.r.MissingPermission(); jsapi.AsPermissionError(err) == nil || jsapi.AsPermissionError(err).Subject != missing {
					t.Errorf("it lacks %v", err)
				}
				time.Sleep(30 * time.Second)
				status, err := Read(t.Context(), x.admin.Queue)
				s.Must(err)
				if len(x.r.received()) > 0 || len(status.Replicas) > 0 || strings.Count(s.Log(), "\n") != 1 {
					t.Errorf("it got %v, and %d are in the fleet; it says\n%s", x.r.received(), len(status.Replicas), s.Log())
				}
				x.set(all, "_INBOX.>")
				s.Await(3*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
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
				s.Await(3*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
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
				s.Await(used+reconcileInterval, "named", func() bool { return s.Logged("allow this NATS user to publish to " + lost + ";") })
				s.Await(10*time.Second, "out of the fleet", func() bool {
					status, err := Read(t.Context(), x.admin.Queue)
					s.Must(err)
					return len(status.Replicas) == 0 && x.r.Held() == 0
				})
				got := len(x.r.received())
				time.Sleep(20 * time.Second)
				if more := len(x.r.received()); more != got {
					t.Errorf("%d events more are handed over", more-got)
				}
				stop()
				queuetest.Receive(s, "the end of publishing", stopped)
				x.set(all, "_INBOX.>")
				s.Await(5*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
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
		s.Await(3*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
		x.set(all, "_OTHER.>")
		s.Await(2*time.Second, "named", func() bool {
			return s.Logged("allow this NATS user to subscribe to _INBOX.>; or set the connection's inbox prefix ")
		})
		s.publish(x.admin, "ann")
		time.Sleep(20 * time.Second)
		x.set(all, "_INBOX.>")
		s.Await(10*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
	})
}

// Servers may use other reply subjects for settlement. A worker without permission for them does
// not work there.
func TestWorkerSettlesByNewAcks(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all := neededRights()
		x := s.rightful(all, "js_ack_fc_v2")
		s.publish(x.admin, "ann")
		s.Await(5*time.Second, "named", func() bool { return s.Logged("allow this NATS user to publish to $JS.ACK.*.*.USERPILOT_IDENTIFY.>;") })
		time.Sleep(20 * time.Second)
		if got := x.r.received(); len(got) > 0 {
			t.Errorf("it got %v", got)
		}
		x.set(append(slices.Clone(all), "$JS.ACK.*.*.USERPILOT_IDENTIFY.>"), "_INBOX.>")
		s.Await(5*time.Second, "settled", func() bool { return s.info(x.admin, workName).State.Msgs == 0 })
	})
}

// A publisher that may publish for no user gets an error for each event, and soon.
func TestPublishersAreDeniedTogether(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		few := s.ServeUsers(queuetest.Users{"few": {"userpilot.other.*"}}).Connect("few")
		q, err := queue.New(few, queue.Topology{}, nil)
		s.Must(err)
		p := q.NewPublisher(queue.PublisherConfig{})
		begun := time.Now()
		var results []*queue.Result
		for i := range 3000 {
			r, err := p.PublishAsync(t.Context(), fmt.Appendf(nil, `{"user_id":"u%d"}`, i))
			s.Must(err)
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
		s.Must(p.Close(t.Context()))
	})
}

// A client that may not receive replies gets an error that says so.
func TestWithoutInboxes(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		few := queuetest.Users{"few": {"userpilot.identify.*", "$JS.API.STREAM.INFO.*"}}
		x := s.ServeUsers(few)
		x.Change(few, "_MINE.>")
		q, err := queue.New(x.Connect("few"), queue.Topology{}, nil)
		s.Must(err)
		p := q.NewPublisher(queue.PublisherConfig{})
		_, err = p.Publish(t.Context(), []byte(`{"user_id":"ann"}`))
		if denied := jsapi.AsPermissionError(err); denied == nil || *denied != (jsapi.PermissionError{Subject: "_INBOX.>", Subscribe: true}) {
			t.Errorf("got %v", err)
		}
		for range 2 { // the server reports it once, but it still applies
			begun := time.Now()
			_, err = Read(t.Context(), q)
			if denied := jsapi.AsPermissionError(err); denied == nil || !denied.Subscribe || time.Since(begun) > time.Second {
				t.Errorf("after %v: %v", time.Since(begun), err)
			}
		}
		s.Must(p.Close(t.Context()))
	})
}

// A permitted but slow request is not mistaken for a denied one, even if another request was
// denied.
func TestSlowIsNotDenied(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		few := s.ServeUsers(queuetest.Users{"few": {"allowed"}}).Connect("few")
		q, err := queue.New(few, queue.Topology{}, nil)
		s.Must(err)
		may, err := q.API().IsPermitted(t.Context(), jsapi.ToPublish("other"))
		if err != nil || may {
			t.Fatalf("other may be published to: %v, %v", may, err)
		}
		slow := func(ctx context.Context) error { jsapi.Pause(ctx, 3*jsapi.DenialTimeout); return ctx.Err() }
		s.Must(q.API().WithPermissionCheck(t.Context(), slow, jsapi.ToPublish("allowed")))
		begun := time.Now()
		err = q.API().WithPermissionCheck(t.Context(), slow, jsapi.ToPublish("allowed"), jsapi.ToPublish("other"))
		if denied := jsapi.AsPermissionError(err); denied == nil || denied.Subject != "other" || time.Since(begun) > 2*jsapi.DenialTimeout {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}
