//go:build !noembed

package cli

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

const pipelineAccount = "PIPELINE"

// intoOneAccount puts the users, with the same rights, into the pipeline's account.
func intoOneAccount(options *natsserver.Options) {
	i := slices.IndexFunc(options.Accounts, func(a *natsserver.Account) bool { return a.Name == pipelineAccount })
	for _, u := range options.Users {
		u.Account = options.Accounts[i]
	}
}

// attack is a request whose answer is to do what the role may not.
type attack struct {
	role, request string
	body          string
	reply         string // where the answer is to go
}

// acknowledged is an attack of a producer: the acknowledgement of an event.
func acknowledged(reply string) attack {
	return attack{"producer", "userpilot.identify.x", `{"user_id":"x"}`, reply}
}

// stolen is the request for a consumer that would bring another stream to on-call.
const (
	stolen   = `{"stream_name":"OTHER","config":{"name":"stolen","deliver_subject":"_INBOX_ONCALL_REPLAY.x","ack_policy":"none"}}`
	evilKey  = "$KV.userpilot_identify_versions.evil"
	getNewer = "$JS.API.DIRECT.GET.KV_userpilot_identify_versions"
)

func attacks() []attack {
	reading := `{"last_by_subj":"` + evilKey + `"}`
	return []attack{
		acknowledged("$KV.userpilot_identify.merge.0"),
		acknowledged("$KV.userpilot_identify.merge.plain"),
		acknowledged("$KV.userpilot_identify.member.AAAAAAAAAAAAAAAAAAAAAA"),
		acknowledged("$KV.userpilot_identify.ledger.0"),
		acknowledged("$KV.userpilot_identify.ledger.15"),
		acknowledged("$KV.userpilot_identify.quiet"),
		acknowledged("$KV.userpilot_identify.recall"),
		acknowledged("$KV.userpilot_identify_versions.x"),
		acknowledged("userpilot.identify-dlq.invalid.1.2.-"),
		acknowledged("userpilot.identify-audit.action.FORGED.begun"),
		acknowledged("userpilot.identify-audit.verdict.1.2"),
		acknowledged("$JS.API.STREAM.PURGE.USERPILOT_IDENTIFY"),
		acknowledged("$JS.API.STREAM.PURGE.USERPILOT_IDENTIFY_DLQ"),
		acknowledged("$JS.API.STREAM.DELETE.OTHER"),
		{"oncall-read", getNewer, `{"last_by_subj":"$KV.userpilot_identify_versions.none"}`, "$JS.API.STREAM.DELETE.OTHER"},
		{"oncall-read", "$JS.API.STREAM.INFO.USERPILOT_IDENTIFY", "", "userpilot.identify.x"},
		{"oncall-read", "$JS.API.DIRECT.GET.USERPILOT_IDENTIFY_DLQ", `{"seq":1}`, "userpilot.identify.x"},
		{"oncall-replay", getNewer, reading, "$JS.API.CONSUMER.CREATE.OTHER.stolen"},
		{"oncall-replay", getNewer, reading, "$JS.API.STREAM.DELETE.OTHER"},
		{"oncall-replay", getNewer, reading, "$KV.userpilot_identify.ledger.0"},
	}
}

// What a role is answered stays in its account, whatever subject it names. In one account with the
// pipeline the same requests reach their aim.
func TestAnswersStayInTheirAccount(t *testing.T) {
	shipped(t)
	for _, strict := range []bool{true, false} {
		for _, apart := range []bool{true, false} {
			t.Run(fmt.Sprintf("strict %v, apart %v", strict, apart), func(t *testing.T) {
				t.Parallel()
				o := shippedAgain(t)
				o.NoJetStreamStrict = !strict
				if !apart {
					intoOneAccount(o)
				}
				v := newVictim(t, serveRoles(t, o))
				v.doctorSays(t, strict)
				for _, a := range attacks() {
					if before, reached := v.states(t), v.suffers(t, a); reached == apart {
						t.Errorf("%s asks %s to be answered on %s: it is reached: %v", a.role, a.request, a.reply, reached)
					} else if after := v.states(t); apart && after != before {
						t.Errorf("%s asks %s to be answered on %s: before\n%safter\n%s", a.role, a.request, a.reply, before, after)
					}
				}
			})
		}
	}
}

// victim is a pipeline with an event, a dead letter and another stream.
type victim struct {
	*roles
	all *nats.Conn
	js  jetstream.JetStream
}

func newVictim(t *testing.T, r *roles) *victim {
	t.Helper()
	r.must(t, "setup", "", "setup")
	v := &victim{roles: r, all: r.connect(t, "all")}
	var err error
	if v.js, err = jetstream.New(v.all); err != nil {
		t.Fatal(err)
	}
	if _, err := v.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other"}}); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"other", "userpilot.identify.x", "userpilot.identify-dlq.invalid.1.1.-"} {
		v.publish(t, v.all, subject, `{"user_id":"x"}`)
	}
	v.publish(t, r.connect(t, "oncall-replay"), evilKey, stolen)
	return v
}

func (v *victim) publish(t *testing.T, nc *nats.Conn, subject, body string) {
	t.Helper()
	if answer, err := nc.Request(subject, []byte(body), patience); err != nil || !strings.Contains(string(answer.Data), `"seq":`) {
		t.Fatalf("publish to %s: %v, %+v", subject, err, answer)
	}
}

// suffers reports whether the answer to an attack arrives in the pipeline's account. A second request
// of the same kind is answered after the first.
func (v *victim) suffers(t *testing.T, a attack) bool {
	t.Helper()
	heard, err := v.all.SubscribeSync(a.reply)
	if err == nil {
		err = v.all.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = heard.Unsubscribe() }()
	nc := v.connect(t, a.role)
	if err := nc.PublishRequest(a.request, a.reply, []byte(a.body)); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Request(a.request, []byte(a.body), patience); err != nil {
		t.Fatalf("%s asks %s: %v", a.role, a.request, err)
	}
	if err := v.all.Flush(); err != nil {
		t.Fatal(err)
	}
	n, _, err := heard.Pending()
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// doctorSays expects that doctor warns of a server that is not strict.
func (v *victim) doctorSays(t *testing.T, strict bool) {
	t.Helper()
	want := "warn  strict       requests with unknown fields are executed, "
	if strict {
		want = "ok    strict       requests with unknown fields are rejected\n"
	}
	if _, stdout, _ := v.as("worker", "", "doctor"); !strings.Contains(stdout, want) {
		t.Errorf("doctor says\n%s", stdout)
	}
}

// states tells what is in each stream, and which consumers it has. The work stream holds what was
// published, and nothing else came or went.
func (v *victim) states(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	list := v.js.ListStreams(t.Context())
	for s := range list.Info() {
		if s.Config.Name == (queue.Topology{}).StreamName() {
			s.State.Msgs, s.State.LastSeq = s.State.Msgs-s.State.LastSeq, 0
		}
		fmt.Fprintf(&all, "%s: %d messages, the last is %d, %d consumers\n", s.Config.Name, s.State.Msgs, s.State.LastSeq, s.State.Consumers)
	}
	if list.Err() != nil {
		t.Fatal(list.Err())
	}
	return all.String()
}

// Where publishers are in the pipeline's account, a server that is not strict takes an acknowledgement
// for a request to purge a stream. One that is refuses it.
func TestAcknowledgementAsPurge(t *testing.T) {
	shipped(t)
	for _, strict := range []bool{true, false} {
		t.Run(fmt.Sprintf("strict %v", strict), func(t *testing.T) {
			t.Parallel()
			o := shippedAgain(t)
			o.NoJetStreamStrict = !strict
			intoOneAccount(o)
			v := newVictim(t, serveRoles(t, o))
			answers, err := v.all.SubscribeSync("$JS.EVENT.ADVISORY.API")
			if err != nil {
				t.Fatal(err)
			}
			if !v.suffers(t, acknowledged("$JS.API.STREAM.PURGE.USERPILOT_IDENTIFY_DLQ")) {
				t.Fatal("the acknowledgement does not arrive")
			}
			for said := ""; !strings.Contains(said, "STREAM.PURGE"); {
				m, err := answers.NextMsg(patience)
				if err != nil {
					t.Fatal(err)
				}
				said = string(m.Data)
			}
			stream, err := v.js.Stream(t.Context(), queue.Topology{}.DeadStreamName())
			if err != nil {
				t.Fatal(err)
			}
			if left := stream.CachedInfo().State.Msgs; left > 0 != strict {
				t.Errorf("%d dead letters are left", left)
			}
		})
	}
}

// Each role outside the pipeline's account has one of its own, which imports the lines of its rights
// and no more: an answer could reach what is imported besides.
func TestAccountsImportTheRights(t *testing.T) {
	options := shipped(t)
	r := serveRoles(t, options)
	accounts := map[string][]string{}
	for _, u := range options.Users {
		accounts[u.Account.Name] = append(accounts[u.Account.Name], u.Username)
	}
	if got := sorted(accounts[pipelineAccount]); !slices.Equal(got, []string{"setup", "worker"}) {
		t.Errorf("in the pipeline's account are %v", got)
	}
	delete(accounts, pipelineAccount)
	if len(accounts) != 3 {
		t.Errorf("the other accounts are %v", accounts)
	}
	for account, users := range accounts {
		z, err := r.server.Accountz(&natsserver.AccountzOptions{Account: account})
		if err != nil {
			t.Fatal(err)
		}
		var imports []string
		for _, i := range z.Account.Imports {
			if i.Account == pipelineAccount {
				imports = append(imports, string(i.Subject))
			} else if !strings.HasPrefix(string(i.Subject), "$SYS.") && account != "PRODUCERS" {
				t.Errorf("%s imports %s from %s", account, i.Subject, i.Account)
			}
		}
		want := slices.Clone(allowed(t, options, users[0]))
		if account != "PRODUCERS" {
			want = append(want, "$JS.API.INFO") // in place of the server's own answers
		}
		if got := sorted(imports); len(users) != 1 || !slices.Equal(got, sorted(want)) || z.Account.JetStream || len(z.Account.Exports) > 0 {
			t.Errorf("%s has %v and imports\n%s\nwant\n%s", account, users, strings.Join(got, "\n"), strings.Join(sorted(want), "\n"))
		}
	}
}

// The tests that SECURITY.md names are there.
func TestSecurityNamesTests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	err = filepath.WalkDir("../../../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		code.Write(source)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllSubmatch(text, -1)
	if len(names) < 10 {
		t.Errorf("it names %d", len(names))
	}
	for _, name := range names {
		if !strings.Contains(code.String(), "\nfunc "+string(name[1])+"(") {
			t.Errorf("there is no %s", name[1])
		}
	}
}
