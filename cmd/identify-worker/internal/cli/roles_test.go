//go:build !noembed

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.yaml.in/yaml/v3"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

const (
	serverConf   = "../../../../deployments/nats/server.conf"
	usersConf    = "../../../../deployments/nats/users.conf"
	rolePassword = "secret"
)

// roleNames are those of deployments/nats/users.conf.
var roleNames = []string{"producer", "worker", "oncall-read", "oncall-replay", "setup"}

// roleVariable names a role in the environment, and in its inbox prefix.
func roleVariable(role string) string { return strings.ToUpper(strings.ReplaceAll(role, "-", "_")) }

func inboxPrefix(role string) string { return "_INBOX_" + roleVariable(role) }

// shipped reads the configuration that is shipped. The passwords are in the environment meanwhile,
// so the test must not be parallel; its subtests may be.
func shipped(t *testing.T) *natsserver.Options {
	t.Helper()
	for _, role := range roleNames {
		t.Setenv(roleVariable(role)+"_PASSWORD", rolePassword)
	}
	return shippedAgain(t)
}

// shippedAgain reads it for another server in the same test: the servers write to its accounts.
func shippedAgain(t *testing.T) *natsserver.Options {
	t.Helper()
	options, err := natsserver.ProcessConfigFile(serverConf)
	if err != nil {
		t.Fatal(err)
	}
	return options
}

func userOf(t *testing.T, options *natsserver.Options, role string) *natsserver.User {
	t.Helper()
	i := slices.IndexFunc(options.Users, func(u *natsserver.User) bool { return u.Username == role })
	if i < 0 || options.Users[i].Permissions == nil {
		t.Fatalf("users.conf does not limit %s", role)
	}
	return options.Users[i]
}

func accountOf(t *testing.T, options *natsserver.Options, role string) *natsserver.Account {
	t.Helper()
	return userOf(t, options, role).Account
}

// allowed are the subjects that a role may publish to.
func allowed(t *testing.T, options *natsserver.Options, role string) []string {
	t.Helper()
	p := userOf(t, options, role).Permissions
	if p.Publish == nil || p.Subscribe == nil || p.Publish.Deny != nil || !slices.Equal(p.Subscribe.Allow, []string{inboxPrefix(role) + ".>"}) || p.Response != nil {
		t.Fatalf("%s may publish to %+v and subscribe to %+v", role, p.Publish, p.Subscribe)
	}
	return p.Publish.Allow
}

// roles is a server with the configuration that is shipped, and one user more who may do everything.
type roles struct {
	t      *testing.T
	server *natsserver.Server
}

// serveRoles starts a server. Of each role in lacking there is a user for each of its lines, named
// by lackingOne, who may do all but that.
func serveRoles(t *testing.T, options *natsserver.Options, lacking ...string) *roles {
	t.Helper()
	options = options.Clone()
	options.Host, options.Port, options.HTTPPort, options.StoreDir = "127.0.0.1", natsserver.RANDOM_PORT, 0, t.TempDir()
	options.NoSigs, options.NoLog = true, true
	for _, role := range lacking {
		subjects := allowed(t, options, role)
		for i := range append(slices.Clone(subjects), "its inboxes") {
			p := &natsserver.Permissions{Publish: &natsserver.SubjectPermission{}, Subscribe: &natsserver.SubjectPermission{Allow: []string{inboxPrefix(role) + ".>"}}}
			p.Publish.Allow = slices.Clone(subjects)
			if i < len(subjects) {
				p.Publish.Allow = slices.Delete(p.Publish.Allow, i, i+1)
			} else {
				p.Subscribe.Allow = []string{"none"}
			}
			options.Users = append(options.Users, &natsserver.User{Username: lackingOne(role, i), Password: rolePassword, Permissions: p, Account: accountOf(t, options, role)})
		}
	}
	options.Users = append(options.Users, &natsserver.User{Username: "all", Password: rolePassword, Account: accountOf(t, options, "worker")})
	n, err := natsserver.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	t.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	return &roles{t, n}
}

func lackingOne(role string, line int) string { return fmt.Sprintf("%s.%d", role, line) }

// url is the server's, for a user.
func (r *roles) url(user string) string {
	u, err := url.Parse(r.server.ClientURL())
	if err != nil {
		r.t.Fatal(err)
	}
	u.User = url.UserPassword(user, rolePassword)
	return u.String()
}

// env is the environment of a user's commands, and more.
func (r *roles) env(user string, more ...string) func(string) string {
	role, _, _ := strings.Cut(user, ".")
	env := map[string]string{"NATS_URL": r.url(user), "NATS_INBOX_PREFIX": inboxPrefix(role), "IDENTIFY_WAIT": "0", "IDENTIFY_CONNECT_WAIT": "0"}
	for _, m := range more {
		name, value, _ := strings.Cut(m, "=")
		env[name] = value
	}
	return func(name string) string { return env[name] }
}

// as runs a command as a user to its end.
func (r *roles) as(user, stdin string, args ...string) (status int, stdout, stderr string) {
	var out, err strings.Builder
	status = run(r.t.Context(), args, strings.NewReader(stdin), &out, &err, r.env(user))
	return status, out.String(), err.String()
}

// must is as for what must succeed.
func (r *roles) must(t *testing.T, user, stdin string, args ...string) (stdout string) {
	t.Helper()
	status, stdout, stderr := r.as(user, stdin, args...)
	if status != exitDone {
		t.Fatalf("%s: %s: status %d: %s%s", user, strings.Join(args, " "), status, stdout, stderr)
	}
	return stdout
}

// connect is a plain client of a user.
func (r *roles) connect(t *testing.T, user string) *nats.Conn {
	t.Helper()
	role, _, _ := strings.Cut(user, ".")
	nc, err := nats.Connect(r.url(user), nats.CustomInboxPrefix(inboxPrefix(role)), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (r *roles) pipeline(t *testing.T, user string) *queue.Queue {
	t.Helper()
	q, err := queue.New(r.connect(t, user), queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// named reports whether an error's line asks for exactly this right.
func named(stderr, subject string) bool {
	return strings.Contains(stderr, "allow this NATS user to publish to "+subject+";") || strings.Contains(stderr, "allow this NATS user to subscribe to "+subject+";")
}

// everyLine runs check for each user that lacks a line of a role, and names that line.
func everyLine(t *testing.T, options *natsserver.Options, role string, check func(t *testing.T, user, line string)) {
	for i, line := range append(slices.Clone(allowed(t, options, role)), inboxPrefix(role)+".>") {
		t.Run(role+" without "+line, func(t *testing.T) {
			t.Parallel()
			check(t, lackingOne(role, i), line)
		})
	}
}

// fails runs commands until one fails. That must name the line in its one line of error.
func (r *roles) fails(t *testing.T, user, line string, commands ...[]string) {
	t.Helper()
	for _, args := range commands {
		status, _, stderr := r.as(user, `{"user_id":"ann"}`, args...)
		if status == exitDone {
			continue
		}
		if last := stderr[strings.LastIndex(strings.TrimSpace(stderr), "\n")+1:]; status != exitFailed || !strings.HasPrefix(last, "identify-worker: ") || !named(last, line) {
			t.Errorf("%s: status %d: %s", strings.Join(args, " "), status, stderr)
		}
		if strings.Contains(stderr, "level=WARN") || strings.Contains(stderr, "level=ERROR") {
			t.Errorf("%s says more than its error: %s", strings.Join(args, " "), stderr)
		}
		return
	}
	t.Error("it is not needed")
}

// The whole pipeline by the users that are shipped, each with its own commands.
func TestRolesSuffice(t *testing.T) {
	r := serveRoles(t, shipped(t))
	r.must(t, "setup", "", "setup")
	api := userpilottest.New(userpilottest.Options{Key: "key"})
	if err := api.Start(); err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
		if bytes.Contains(q.Body, []byte("dies")) {
			return userpilottest.Fault{Status: http.StatusUnprocessableEntity}
		}
		return userpilottest.Fault{}
	})
	w := r.work(t, "worker", "USERPILOT_API_KEY=key", "USERPILOT_ENDPOINT="+api.URL(), "IDENTIFY_RATE=0")
	r.must(t, "producer", `{"user_id":"ann","metadata":{"plan":"dies"}}`+"\n"+`{"user_id":"ann","metadata":{"plan":"dies","seats":"1"}}`, "publish")
	w.until(t, func(said string) bool { return strings.Contains(said, "dead letter") })
	if !poll(func() bool { return strings.Count(r.must(t, "oncall-read", "", "dlq", "export"), "\n") == 2 }) {
		t.Fatal("the second event is not dead")
	}
	id := func() string {
		return regexp.MustCompile(`"id":"?(\d+)`).FindStringSubmatch(r.must(t, "oncall-read", "", "dlq", "ls", "--json"))[1]
	}
	for _, args := range [][]string{{"status"}, {"dlq", "stats"}, {"dlq", "ls"}, {"dlq", "show", id()}, {"dlq", "export"}, {"dlq", "history"}} {
		r.must(t, "oncall-read", "", args...)
		r.must(t, "oncall-replay", "", args...)
	}
	r.must(t, "oncall-replay", "", "dlq", "replay", "--id", id(), "--set", ".metadata.plan=pro", "--wait", "--yes")
	r.must(t, "oncall-replay", "", "dlq", "discard", "--id", id(), "--note", "tests", "--yes")
	r.must(t, "oncall-replay", "", "dlq", "purge", "--user", "ann", "--yes")
	if p, _ := api.Profile("ann"); string(p.Properties["plan"]) != `"pro"` {
		t.Errorf("the plan is %s", p.Properties["plan"])
	}
	if text := r.must(t, "oncall-read", "", "dlq", "history"); strings.Count(text, "done") < 3 {
		t.Errorf("the history is\n%s", text)
	}
	r.must(t, "setup", "", "setup", "--update", "--partitions", "16")
	if said := w.stop(t); strings.Contains(said, "WARN") || strings.Contains(said, "ERROR") {
		t.Errorf("the worker said\n%s", said)
	}
}

// The component for Kubernetes lets the role worker in, with the files of a Secret.
func TestRoleOnKubernetes(t *testing.T) {
	options, secret := shipped(t), newAuthority(t)
	cert, key := secret.issue("server", asItIs)
	var err error
	if options.TLSConfig, err = natsserver.GenTLSConfig(&natsserver.TLSConfigOpts{CertFile: cert, KeyFile: key}); err != nil {
		t.Fatal(err)
	}
	r := serveRoles(t, options)
	write(t, secret.dir+"/password", rolePassword+"\n")

	var stdout, stderr strings.Builder
	if status := run(t.Context(), []string{"setup"}, strings.NewReader(""), &stdout, &stderr, r.env("setup", "IDENTIFY_NATS_CA="+secret.file)); status != exitDone {
		t.Fatalf("setup: status %d: %s", status, stderr.String())
	}
	env := componentEnv(t, "nats-password", secret.dir)
	env["NATS_URL"] = r.server.Addr().String()
	if status := run(t.Context(), []string{"status"}, strings.NewReader(""), &stdout, &stderr, func(name string) string { return env[name] }); status != exitDone {
		t.Errorf("status %d: %s", status, stderr.String())
	}
}

// componentEnv is the environment that a component for Kubernetes adds to the worker's, with its
// Secret in a folder.
func componentEnv(t *testing.T, component, folder string) map[string]string {
	t.Helper()
	var patch struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Env []struct{ Name, Value string }
					}
				}
			}
		}
	}
	readFile(t, "../../../../deployments/kubernetes/components/"+component+"/deployment.yaml", yaml.Unmarshal, &patch)
	env := map[string]string{}
	for _, e := range patch.Spec.Template.Spec.Containers[0].Env {
		env[e.Name] = strings.Replace(e.Value, "/run/secrets/nats", folder, 1)
	}
	return env
}

// working is `identify-worker work`.
type working struct {
	said    printed
	changed chan struct{}
	ended   chan struct{}
	cancel  context.CancelFunc
}

func (r *roles) work(t *testing.T, user string, env ...string) *working {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &working{changed: make(chan struct{}, 1), ended: make(chan struct{}), cancel: cancel}
	w.said.changed = w.changed
	getenv := r.env(user, append([]string{"IDENTIFY_LISTEN=127.0.0.1:0"}, env...)...)
	go func() {
		defer close(w.ended)
		run(ctx, []string{"work"}, strings.NewReader(""), io.Discard, &w.said, getenv)
	}()
	t.Cleanup(func() { w.stop(t) })
	return w
}

// until waits for what the worker says.
func (w *working) until(t *testing.T, is func(said string) bool) {
	t.Helper()
	late := time.After(patience)
	for !is(w.said.String()) {
		select {
		case <-w.changed:
		case <-w.ended:
			if !is(w.said.String()) {
				t.Fatalf("it ended:\n%s", w.said.String())
			}
			return
		case <-late:
			t.Fatalf("it said only\n%s", w.said.String())
		}
	}
}

func (w *working) stop(t *testing.T) (said string) {
	t.Helper()
	w.cancel()
	select {
	case <-w.ended:
	case <-time.After(patience):
		t.Errorf("it does not end:\n%s", w.said.String())
	}
	return w.said.String()
}

// Each line of a worker is needed, and is named at once: by the worker, or by doctor if workers can do
// without.
func TestWorkerLines(t *testing.T) {
	options := shipped(t)
	r := serveRoles(t, options, "worker")
	r.must(t, "setup", "", "setup")
	optional := map[string]bool{}
	for _, right := range worker.Permissions(queue.Topology{}) {
		optional[right.Subject] = right.Optional
	}
	everyLine(t, options, "worker", func(t *testing.T, user, line string) {
		if optional[line] {
			_, stdout, _ := r.as(user, "", "doctor")
			if !strings.Contains(stdout, "warn  rights       the user may not publish to "+line) {
				t.Errorf("doctor says\n%s", stdout)
			}
			return
		}
		w := r.work(t, user, "USERPILOT_API_KEY=key", "USERPILOT_ENDPOINT=http://127.0.0.1:1")
		w.until(t, func(said string) bool { return named(said, line) })
		if address := regexp.MustCompile(`metrics=(\S+)/metrics`).FindStringSubmatch(w.said.String()); address != nil {
			if answer := get(t, address[1]+"/readyz"); !named(answer, line) {
				t.Errorf("/readyz says %s", answer)
			}
		}
	})
}

func get(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status + ": " + string(body)
}

// half is a handler that lets events die which say so, and has the others wait for ever.
type half struct {
	t       *testing.T
	letters *deadletter.Store
	died    chan struct{}
}

func (half) Assign(*fleet.Claim) {}

func (half) Revoke(*fleet.Claim) {}

func (h half) Deliver(c *fleet.Claim, d fleet.Delivery) {
	user := regexp.MustCompile(`"user_id":"([^"]*)"`).FindSubmatch(d.Body)
	if user == nil || !bytes.Contains(d.Body, []byte("dies")) {
		return
	}
	event := deadletter.Event{Name: deadletter.Position{Stream: c.StreamCreated(), Sequence: d.Sequence}, Partition: c.Partition(), Published: d.Published}
	if _, err := h.letters.Add(h.t.Context(), event, d.Body, deadletter.Death{Reason: deadletter.Rejected, Status: 422, User: string(user[1])}); err != nil {
		h.t.Error(err)
	}
	c.Settle(string(user[1]), []fleet.Delivery{d}, func(int) { h.died <- struct{}{} })
}

// bereave sets up a pipeline in which each user has three dead letters, the last of them without a
// key, and which is worked until the test ends.
func (r *roles) bereave(t *testing.T, users []string) (letters map[string][]string) {
	t.Helper()
	r.must(t, "setup", "", "setup")
	q := r.pipeline(t, "all")
	p := q.NewPublisher(queue.PublisherConfig{})
	nc := r.connect(t, "all")
	for _, user := range users {
		body := []byte(`{"user_id":"` + user + `","metadata":{"plan":"dies"}}`)
		for range 2 {
			if _, err := p.Publish(t.Context(), body); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := nc.Request(queue.Topology{}.PlainSubject(), body, patience); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := half{t, deadletter.NewStore(q), make(chan struct{}, 3*len(users))}
	ctx, cancel := context.WithCancel(context.Background())
	var working sync.WaitGroup
	working.Go(func() {
		if err := fleet.New(q).Work(ctx, fleet.MemberConfig{Prepare: h.letters.ReadSeal}, h); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { // after the subtests
		cancel()
		working.Wait()
	})
	late := time.After(patience)
	for range 3 * len(users) {
		select {
		case <-h.died:
		case <-late:
			t.Fatal("not all of them have died")
		}
	}
	letters = map[string][]string{}
	for l, err := range inspector.New(q).DeadLetters(t.Context(), inspector.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		id := strconv.FormatUint(l.ID, 10)
		if l.Partition == "plain" {
			letters[l.User] = append(letters[l.User], id)
		} else {
			letters[l.User] = append([]string{id}, letters[l.User]...)
		}
	}
	return letters
}

// onCallReading are the commands of on-call that change nothing.
func onCallReading(letter string) [][]string {
	return [][]string{
		{"status"}, {"dlq", "stats"}, {"dlq", "ls"}, {"dlq", "show", letter}, {"dlq", "export"}, {"dlq", "history"},
	}
}

// Each line of those on call is needed, and is named by the first command that needs it, in one line.
func TestOnCallLines(t *testing.T) {
	options := shipped(t)
	r := serveRoles(t, options, "oncall-read", "oncall-replay")
	users := []string{"reader"}
	for i := range append(allowed(t, options, "oncall-replay"), "its inboxes") {
		users = append(users, "u"+strconv.Itoa(i))
	}
	letters := r.bereave(t, users)
	// status does without these: see TestStatusWithFewRights.
	optional := []string{"$JS.API.CONSUMER.LIST.USERPILOT_IDENTIFY", "$JS.API.STREAM.INFO.USERPILOT_IDENTIFY_AUDIT", "$JS.API.STREAM.INFO.KV_userpilot_identify_versions"}
	everyLine(t, options, "oncall-read", func(t *testing.T, user, line string) {
		if slices.Contains(optional, line) {
			return
		}
		r.fails(t, user, line, onCallReading(letters["reader"][0])...)
	})
	everyLine(t, options, "oncall-replay", func(t *testing.T, user, line string) {
		own := "u" + user[strings.LastIndexByte(user, '.')+1:]
		if slices.Contains(optional, line) {
			return
		}
		if strings.Contains(line, ".PURGE.") { // who has it would take the others' letters away
			r.fails(t, user, line, []string{"dlq", "discard", "--all", "--note", "tests", "--yes"})
			return
		}
		ids := letters[own]
		r.fails(t, user, line, append(onCallReading(ids[0]),
			[]string{"dlq", "replay", "--id", ids[0], "--id", ids[2], "--set", ".metadata.plan=waits", "--yes"},
			[]string{"dlq", "discard", "--id", ids[1], "--note", "tests", "--yes"},
			[]string{"dlq", "purge", "--user", own, "--yes"},
		)...)
	})
}

func TestProducerLines(t *testing.T) {
	options := shipped(t)
	r := serveRoles(t, options, "producer")
	r.must(t, "setup", "", "setup")
	everyLine(t, options, "producer", func(t *testing.T, user, line string) {
		if line != "userpilot.identify" {
			r.fails(t, user, line, []string{"publish"}, []string{"publish", "--backfill"})
			return
		}
		// Our own publisher needs it for endless user ids alone.
		_, err := r.pipeline(t, user).NewPublisher(queue.PublisherConfig{}).Publish(t.Context(), []byte(`{"user_id":"`+strings.Repeat("u", 2000)+`"}`))
		if denied := (*queue.PermissionError)(nil); !errors.As(err, &denied) || denied.Subject != line {
			t.Errorf("got %v", err)
		}
	})
}

// A producer may be allowed live events, backfill, or both.
func TestProducerOfOneClass(t *testing.T) {
	options := shipped(t)
	r := serveRoles(t, options, "producer")
	r.must(t, "setup", "", "setup")
	lines := allowed(t, options, "producer")
	for line, args := range map[string][]string{
		"userpilot.identify.*":          {"publish", "--backfill"},
		"userpilot.identify-backfill.*": {"publish"},
	} {
		r.must(t, lackingOne("producer", slices.Index(lines, line)), `{"user_id":"ann"}`, args...)
	}
}

func TestSetupLines(t *testing.T) {
	options := shipped(t)
	everyLine(t, options, "setup", func(t *testing.T, user, line string) {
		r := serveRoles(t, shippedAgain(t), "setup")
		if strings.Contains(line, ".UPDATE.") || strings.Contains(line, ".DIRECT.GET.") {
			r.must(t, "setup", "", "setup")
			r.spoil(t)
			r.fails(t, user, line, []string{"setup", "--update", "--partitions", "32"})
			return
		}
		r.fails(t, user, line, []string{"setup"})
	})
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		r := serveRoles(t, shippedAgain(t))
		r.must(t, "setup", "", "setup")
		r.spoil(t)
		r.must(t, "setup", "", "setup", "--update", "--partitions", "32")
	})
}

// spoil makes all streams but the first what they should not be.
func (r *roles) spoil(t *testing.T) {
	t.Helper()
	js, err := jetstream.New(r.connect(t, "all"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"USERPILOT_IDENTIFY_DLQ", "USERPILOT_IDENTIFY_AUDIT", "KV_userpilot_identify", "KV_userpilot_identify_versions"} {
		stream, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		c := stream.CachedInfo().Config
		c.Discard = jetstream.DiscardOld
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	// The key of a replica that has left: setup reads the keys to count those that run.
	gone := nats.NewMsg("$KV.userpilot_identify.member.gone")
	gone.Header.Set("KV-Operation", "DEL")
	if _, err := js.PublishMsg(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
}

// What one role may do, no other may that has no such line; and nobody may what no role needs.
func TestRolesAreSeparate(t *testing.T) {
	options := shipped(t)
	r := serveRoles(t, options)
	r.must(t, "setup", "", "setup")
	subjects := map[string]bool{
		"$JS.API.STREAM.DELETE.USERPILOT_IDENTIFY": true, "$JS.API.STREAM.PURGE.USERPILOT_IDENTIFY": true, "$JS.API.STREAM.PURGE.USERPILOT_IDENTIFY_DLQ": true,
		"$JS.API.STREAM.SNAPSHOT.USERPILOT_IDENTIFY": true, "$JS.API.STREAM.LIST": true, "$JS.API.STREAM.CREATE.OTHER": true, "$JS.API.STREAM.INFO.OTHER": true,
		"$JS.API.CONSUMER.CREATE.USERPILOT_IDENTIFY_DLQ.x": true, "$JS.API.CONSUMER.INFO.USERPILOT_IDENTIFY.x": true, "$JS.API.CONSUMER.PAUSE.USERPILOT_IDENTIFY.x": true,
		"$JS.API.STREAM.MSG.DELETE.KV_userpilot_identify": true, "$SYS.REQ.SERVER.PING": true, "userpilot.other": true, "userpilot.other.x": true, "other": true,
		"userpilot.identify.x.y": true, "userpilot.identify-backfill": true, "userpilot.identify-backfill.x.y": true, "userpilot.identify-dlq.closed": true, "$KV.userpilot_other.x": true,
	}
	listens := []string{">", "_INBOX.>", "userpilot.>", "userpilot.identify.*", "userpilot.identify-backfill.*", "userpilot.identify-dlq.>", "$KV.>", "$JS.API.>", "$JS.EVENT.>", "$JS.ACK.>"}
	for _, role := range roleNames {
		subjects[inboxPrefix(role)+".x"] = true
		listens = append(listens, inboxPrefix(role)+".>")
		for _, line := range allowed(t, options, role) {
			subjects[strings.NewReplacer("*", "x", ">", "x.y").Replace(line)] = true
		}
	}
	for _, role := range roleNames {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			nc := r.connect(t, role)
			lines := allowed(t, options, role)
			for _, subject := range slices.Sorted(maps.Keys(subjects)) {
				may := slices.ContainsFunc(lines, func(line string) bool { return natsserver.SubjectsCollide(line, subject) })
				if got := !denies(t, nc, func() error { return nc.PublishMsg(junk(subject)) }); got != may {
					t.Errorf("may publish to %s: %v", subject, got)
				}
			}
			for _, subject := range listens {
				listen := func() error { _, err := nc.SubscribeSync(subject); return err }
				if got := !denies(t, nc, listen); got != (subject == inboxPrefix(role)+".>") {
					t.Errorf("may subscribe to %s: %v", subject, got)
				}
			}
		})
	}
}

// junk is what no stream stores and no API carries out.
func junk(subject string) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Header.Set("Nats-Expected-Stream", "none")
	m.Data = []byte("{}")
	return m
}

// denies reports whether the server denies what f does.
func denies(t *testing.T, nc *nats.Conn, f func() error) bool {
	t.Helper()
	before := nc.LastError()
	if err := f(); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	after := nc.LastError()
	return after != before && errors.Is(after, nats.ErrPermissionViolation) //nolint:errorlint // each denial is an error of its own
}

// users.conf and the program agree on what a worker needs. What it needs here and there
// only is in users.conf, too, as a comment.
func TestWorkerLinesAgree(t *testing.T) {
	options := shipped(t)
	content, err := os.ReadFile(usersConf)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	lines := slices.Clone(allowed(t, options, "worker"))
	for _, m := range regexp.MustCompile(`(?m)^\s*# "(\S+)"$`).FindAllStringSubmatch(text, -1) {
		lines = append(lines, m[1])
	}
	if got, want := sorted(lines), sorted(publishes(queue.Topology{Replicas: 3})); !slices.Equal(got, want) {
		t.Errorf("users.conf has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// The sed command of its comment.
	other := strings.NewReplacer("USERPILOT_IDENTIFY", "USERPILOT_ORDERS", "userpilot_identify", "userpilot_orders", "userpilot.identify", "userpilot.orders").Replace
	for i := range lines {
		lines[i] = other(lines[i])
	}
	if got, want := sorted(lines), sorted(publishes(queue.Topology{Name: "orders", Replicas: 3})); !slices.Equal(got, want) {
		t.Errorf("for another name it has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for line := range strings.SplitSeq(text, "\n") {
		if left := strings.NewReplacer("identify-worker", "", `the name "identify"`, "").Replace(other(line)); strings.Contains(strings.ToLower(left), "identify") && !strings.Contains(line, "sed ") {
			t.Errorf("for another name there is still %q", left)
		}
	}
}

func publishes(topology queue.Topology) (subjects []string) {
	for _, right := range worker.Permissions(topology) {
		if !right.Subscribe {
			subjects = append(subjects, right.Subject)
		}
	}
	return subjects
}

func sorted(subjects []string) []string { return slices.Sorted(slices.Values(subjects)) }

// The help of a role's commands lists its lines, and no more.
func TestHelpListsTheLines(t *testing.T) {
	options := shipped(t)
	read := []string{"status", "dlq stats", "dlq ls", "dlq show", "dlq export", "dlq history"}
	for role, commands := range map[string][]string{
		"oncall-read":   read,
		"oncall-replay": append([]string{"dlq replay", "dlq discard", "dlq purge"}, read...),
		"setup":         {"setup"},
	} {
		lines := allowed(t, options, role)
		var listed []string
		for _, command := range commands {
			listed = append(listed, rightsInHelp(t, command)...)
		}
		for _, subject := range listed {
			if !slices.ContainsFunc(lines, func(line string) bool { return natsserver.SubjectsCollide(line, subject) }) {
				t.Errorf("%s lacks %s", role, subject)
			}
		}
		for _, line := range lines {
			if !slices.ContainsFunc(listed, func(subject string) bool { return natsserver.SubjectsCollide(line, subject) }) {
				t.Errorf("no help of %s tells why it has %s", role, line)
			}
		}
	}
}

// rightsInHelp are the subjects that a command's help lists, for the name identify.
func rightsInHelp(t *testing.T, command string) []string {
	t.Helper()
	cmd, _, err := newRoot(&flags.Env{Getenv: func(string) string { return "" }}, new(bool)).Find(strings.Fields(command))
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(cmd.Long, "needs permission to publish to:\n")
	if !found {
		t.Fatalf("the help of %s lists no rights", command)
	}
	text, _, _ = strings.Cut(text, "\n\n")
	text = strings.NewReplacer("<stream>", "USERPILOT_IDENTIFY", "<bucket>", "userpilot_identify", "<name>", "identify").Replace(text)
	subjects := regexp.MustCompile(`(\$|userpilot\.)[^\s,]+`).FindAllString(text, -1)
	if len(subjects) == 0 {
		t.Fatalf("the help of %s lists no rights", command)
	}
	return subjects
}

// A password that is not set ends the server; one that is empty does not, as users.conf says.
func TestRolePasswords(t *testing.T) {
	shipped(t)
	t.Setenv("WORKER_PASSWORD", "")
	options, err := natsserver.ProcessConfigFile(serverConf)
	if err != nil {
		t.Fatalf("an empty password is refused now; users.conf must say so: %v", err)
	}
	r := serveRoles(t, options)
	nc, err := nats.Connect(r.server.ClientURL(), nats.UserInfo("worker", ""))
	if err != nil {
		t.Fatalf("an empty password is not taken any more; users.conf must say so: %v", err)
	}
	nc.Close()
	if _, err := nats.Connect(r.url("worker")); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("another password: %v", err)
	}
	if err := os.Unsetenv("WORKER_PASSWORD"); err != nil { // the test restores it
		t.Fatal(err)
	}
	if _, err := natsserver.ProcessConfigFile(serverConf); err == nil || !strings.Contains(err.Error(), "WORKER_PASSWORD") {
		t.Errorf("without a password: %v", err)
	}
}
