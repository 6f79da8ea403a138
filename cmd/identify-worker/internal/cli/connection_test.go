//go:build !noembed

package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// write writes a file of the test.
func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each way to authenticate lets every kind of command in; a wrong secret is named with its flag.
func TestWaysToAuthenticate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := key.Seed()
	public, _ := key.PublicKey()
	stranger, _ := nkeys.CreateUser()
	strange, _ := stranger.Seed()
	password, token := write(t, filepath.Join(dir, "password"), "MARK pa/ss\n"), write(t, filepath.Join(dir, "token"), "MARK token")
	wrong := write(t, filepath.Join(dir, "wrong"), "MARK-wrong\r\n")
	for name, test := range map[string]struct {
		server     string
		env, wrong map[string]string
		want       string
	}{
		"nkey": {fmt.Sprintf("authorization { users: [ { nkey: %s } ] }", public),
			map[string]string{"IDENTIFY_NATS_NKEY": write(t, filepath.Join(dir, "nkey"), string(seed)+"\n")},
			map[string]string{"IDENTIFY_NATS_NKEY": write(t, filepath.Join(dir, "strange"), string(strange))}, "(see --nats-nkey)"},
		"password": {`authorization { users: [ { user: worker, password: "MARK pa/ss" } ] }`,
			map[string]string{"IDENTIFY_NATS_USER": "worker", "IDENTIFY_NATS_PASSWORD_FILE": password},
			map[string]string{"IDENTIFY_NATS_USER": "worker", "IDENTIFY_NATS_PASSWORD_FILE": wrong}, "(see --nats-user, --nats-password-file)"},
		"token": {`authorization { token: "MARK token" }`,
			map[string]string{"IDENTIFY_NATS_TOKEN_FILE": token},
			map[string]string{"IDENTIFY_NATS_TOKEN_FILE": wrong}, "(see --nats-token-file)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.env["NATS_URL"] = serve(t, withJetStream(t, test.server))
			test.wrong["NATS_URL"] = test.env["NATS_URL"]
			f := newFixtureAt(t, test.env)
			f.run(`{"user_id":"ann"}`, "publish")
			f.work(func() { f.call() })
			var stdout, stderr bytes.Buffer
			status := run(t.Context(), []string{"status"}, strings.NewReader(""), &stdout, &stderr, func(name string) string { return test.wrong[name] })
			if status != exitFailed || !strings.Contains(stderr.String(), test.want) || strings.Contains(stderr.String(), "MARK") {
				t.Errorf("status %d: %s", status, stderr.String())
			}
		})
	}
}

// A password is rolled by writing its file anew.
func TestPasswordIsRolled(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	users := filepath.Join(folder, "users.conf")
	set := func(password string) {
		write(t, users, fmt.Sprintf("users: [ { user: worker, password: %q } ]", password))
	}
	set("one")
	server := serveNATS(t, withJetStream(t, fmt.Sprintf("authorization { include \"../%s/users.conf\" }", filepath.Base(folder))))
	password := write(t, filepath.Join(folder, "password"), "one")
	f := newFixtureAt(t, map[string]string{"NATS_URL": server.Addr().String(), "IDENTIFY_NATS_USER": "worker", "IDENTIFY_NATS_PASSWORD_FILE": password})
	f.work(func() {
		set("two")
		f.awaitLog("working")
		if err := server.Reload(); err != nil {
			t.Fatal(err)
		}
		f.awaitLog("(see --nats-user, --nats-password-file)")
		write(t, password, "two\n")
		f.awaitLog("reconnected to NATS")
		f.run(`{"user_id":"ann"}`, "publish")
		f.call()
	})
}

// A server that greets only after the handshake.
func TestTLSFirst(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t)
	cert, key := ours.issue("server", asItIs)
	config := func(first bool) string {
		return fmt.Sprintf("tls { cert_file: %q, key_file: %q, handshake_first: %t }", cert, key, first)
	}
	f := newFixtureAt(t, map[string]string{"NATS_URL": serve(t, withJetStream(t, config(true))), "IDENTIFY_NATS_CA": ours.file, "IDENTIFY_NATS_TLS_FIRST": "true"})
	f.run(`{"user_id":"ann"}`, "publish")
	var stdout, stderr bytes.Buffer
	f.env["NATS_URL"] = serve(t, config(false))
	status := run(t.Context(), []string{"status"}, strings.NewReader(""), &stdout, &stderr, func(name string) string { return f.env[name] })
	if status != exitFailed || !strings.Contains(stderr.String(), "the server does not begin with TLS: see --nats-tls-first") {
		t.Errorf("status %d: %s", status, stderr.String())
	}
}

// The whole pipeline is in the domain of the hub, by way of a leaf node that has a domain of its own.
func TestDomain(t *testing.T) {
	t.Parallel()
	for name, hubs := range map[string]int{"a server": 1, "a cluster": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testDomain(t, serveLeaf(t, hubs), map[string]string{"IDENTIFY_NATS_DOMAIN": "hub", "IDENTIFY_REPLICAS": strconv.Itoa(hubs)})
		})
	}
}

func testDomain(t *testing.T, leaf *natsserver.Server, env map[string]string) {
	env["NATS_URL"] = leaf.Addr().String()
	f := newFixtureAt(t, env)
	f.status = func(body []byte) int {
		if bytes.Contains(body, []byte("dies")) {
			return http.StatusUnprocessableEntity
		}
		return http.StatusAccepted
	}
	for _, users := range []string{"ann", "bob"} { // the second takes over
		log := f.work(func() {
			f.run(`{"user_id":"`+users+`","metadata":{"plan":"gold"}}`+"\n"+`{"user_id":"`+users+`","metadata":{"plan":"dies"}}`+"\n"+`{"user_id":"eve","metadata":{"plan":"dies"}}`, "publish")
			f.awaitLog("dead letter")
			f.run("", "dlq", "export")
			f.run("", "dlq", "replay", "--all", "--yes", "--edit", `.metadata.plan="pro"`, "--wait")
			f.run("", "status")
			f.run("", "dlq", "purge", "--user", "eve", "--yes")
		})
		if strings.Contains(log, "ERROR") {
			t.Errorf("the worker logged\n%s", log)
		}
	}
	for _, words := range []string{"dlq stats", "dlq ls", "dlq history", "setup --update"} {
		f.run("", strings.Fields(words)...)
	}
	js := jetStreamOf(t, leaf)
	for name := range js.StreamNames(t.Context()).Name() {
		t.Errorf("the leaf has the stream %s", name)
	}
	var stdout, stderr bytes.Buffer
	run(t.Context(), []string{"doctor"}, strings.NewReader(""), &stdout, &stderr, func(name string) string { return f.env[name] })
	for line := range strings.Lines(stdout.String()) {
		if strings.HasPrefix(line, "FAIL") {
			t.Errorf("doctor says %s", line)
		}
	}
}

// A set-up that says nothing of the copies and partitions keeps those that there are, also for a stream that
// is missing: fewer copies would not survive the loss of a server.
func TestSetupKeepsCopies(t *testing.T) {
	t.Parallel()
	hub := serveHub(t, 3)
	f := &fixture{t: t, env: map[string]string{"NATS_URL": hub.ClientURL()}}
	js := jetStreamOf(t, hub)
	have := func(want int, args string) {
		t.Helper()
		f.run("", strings.Fields(args)...)
		streams := js.ListStreams(t.Context())
		for s := range streams.Info() {
			if s.Config.Replicas != want {
				t.Errorf("after %s, %s has %d copies", args, s.Config.Name, s.Config.Replicas)
			}
		}
		if err := streams.Err(); err != nil {
			t.Error(err)
		}
	}
	have(3, "setup --replicas 3")
	have(3, "setup --update --dlq-max-bytes 1GiB")
	have(3, "setup --update --partitions 8")
	missing := func(stream string) {
		t.Helper()
		if err := js.DeleteStream(t.Context(), stream); err != nil {
			t.Error(err)
		}
	}
	missing("USERPILOT_IDENTIFY")
	have(3, "setup --update --partitions 8")
	missing("USERPILOT_IDENTIFY_DLQ")
	f.says(1, "setup --replicas 1", "num_replicas is 3, should be 1", "(use --replicas 3, or change the stream: identify-worker setup --update --replicas 1)")
	have(3, "setup")
	f.says(0, "setup", "nothing to do")
	have(1, "setup --update --replicas 1")
}

// An event of the leaf's pipeline that the hub's pipeline of the same name has taken is not published.
func TestForeignDomain(t *testing.T) {
	t.Parallel()
	leaf := serveLeaf(t, 1)
	hubs := newFixtureAt(t, map[string]string{"NATS_URL": leaf.Addr().String(), "IDENTIFY_NATS_DOMAIN": "hub"})
	var stdout, stderr bytes.Buffer
	delete(hubs.env, "IDENTIFY_NATS_DOMAIN")
	status := run(t.Context(), []string{"publish"}, strings.NewReader(`{"user_id":"ann"}`), &stdout, &stderr, func(name string) string { return hubs.env[name] })
	if status != exitFailed || !strings.Contains(stderr.String(), "USERPILOT_IDENTIFY in the domain hub has it, not USERPILOT_IDENTIFY in the domain leaf") {
		t.Errorf("status %d: %s", status, stderr.String())
	}
}

// serveLeaf starts servers with JetStream: as many as a cluster in the domain hub, and one in the domain
// leaf, which it returns when it is connected to the hub.
func serveLeaf(t *testing.T, hubs int) *natsserver.Server {
	t.Helper()
	server := func(name, more string) *natsserver.Server {
		return serveNATS(t, fmt.Sprintf("server_name: %s\njetstream { store_dir: %q, domain: %s }\nleafnodes { %s }", name, t.TempDir(), name, more))
	}
	hub := serveHub(t, hubs)
	v, err := hub.Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf := server("leaf", fmt.Sprintf(`remotes: [ { url: "nats-leaf://127.0.0.1:%d" } ]`, v.LeafNode.Port))
	if !poll(func() bool { return hub.NumLeafNodes() > 0 }) {
		t.Fatal("the leaf is not connected to the hub")
	}
	return leaf
}

// serveHub starts servers in the domain hub, a cluster if they are several, and returns one of them when
// all are there.
func serveHub(t *testing.T, n int) *natsserver.Server {
	t.Helper()
	var all []*natsserver.Server
	routes := `"nats-route://127.0.0.1:1"` // to nobody: the first server needs one to be in a cluster
	for i := range n {
		cluster := ""
		if n > 1 {
			cluster = fmt.Sprintf("cluster { name: hub, listen: \"127.0.0.1:-1\", routes: [ %s ] }", routes)
		}
		s := serveNATS(t, fmt.Sprintf("server_name: hub%d\njetstream { store_dir: %q, domain: hub }\nleafnodes { listen: \"127.0.0.1:-1\" }\n%s", i, t.TempDir(), cluster))
		if n > 1 {
			routes += fmt.Sprintf(", %q", "nats-route://"+s.ClusterAddr().String())
		}
		all = append(all, s)
	}
	whole := func(s *natsserver.Server) bool { return s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == n }
	if n > 1 && !poll(func() bool { return slices.ContainsFunc(all, whole) }) {
		t.Fatal("the cluster has no leader")
	}
	return all[0]
}

func jetStreamOf(t *testing.T, n *natsserver.Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(n.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}
