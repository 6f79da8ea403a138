//go:build !noembed

package cli

import (
	"slices"
	"strings"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/worker"
)

// A user who lacks rights is told which, and what cannot be looked at for that.
func TestDoctorNamesMissingRights(t *testing.T) {
	t.Parallel()
	var allowed []string
	for _, r := range worker.Permissions(queue.Topology{}) {
		if r.Use != "store dead letters" && r.Use != "read the account's limits" && r.Subject != "$JS.API.STREAM.INFO.USERPILOT_IDENTIFY" {
			allowed = append(allowed, r.Subject)
		}
	}
	n, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		Users: []*natsserver.User{
			{Username: "all", Password: "secret"},
			{Username: "few", Password: "secret", Permissions: &natsserver.Permissions{Publish: &natsserver.SubjectPermission{Allow: allowed}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	t.Cleanup(n.Shutdown)
	as := func(user, command string) (status int, lines []string) {
		env := map[string]string{"NATS_URL": strings.Replace(n.ClientURL(), "nats://", "nats://"+user+":secret@", 1)}
		var stdout, stderr strings.Builder
		status = run(t.Context(), []string{command}, strings.NewReader(""), &stdout, &stderr, func(name string) string { return env[name] })
		if text := stdout.String() + stderr.String(); strings.Contains(text, "secret") || strings.Contains(text, "level=") {
			t.Errorf("%s prints %s", command, text)
		}
		return status, strings.Split(stdout.String(), "\n")
	}
	if status, lines := as("all", "setup"); status != 0 {
		t.Fatalf("setup: %v", lines)
	}
	status, lines := as("few", "doctor")
	for _, want := range []string{
		"FAIL  rights       the user may not publish to $JS.API.STREAM.INFO.USERPILOT_IDENTIFY (read the stream's state): allow it on the NATS server; deployments/nats/README.md lists everything that a worker needs",
		"FAIL  rights       the user may not publish to userpilot.identify-dlq.*.*.*.* (store dead letters): allow it on the NATS server; deployments/nats/README.md lists everything that a worker needs",
		"warn  rights       the user may not publish to $JS.API.INFO (read the account's limits)",
		"FAIL  streams      not permitted: allow this NATS user to publish to $JS.API.STREAM.INFO.USERPILOT_IDENTIFY; deployments/nats/users.conf lists the permissions of each role",
		"warn  storage      unknown: not permitted: allow this NATS user to publish to $JS.API.INFO; deployments/nats/users.conf lists the permissions of each role",
		"warn  workers      skipped until rights and streams pass",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is not in\n%s", want, strings.Join(lines, "\n"))
		}
	}
	if status != exitFailed {
		t.Errorf("status %d", status)
	}
}
