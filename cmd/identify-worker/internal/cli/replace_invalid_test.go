//go:build !noembed

package cli

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/queue"
)

// A dead letter that no edit can take, as it is not UTF-8, is repaired byte by byte, and delivered.
func TestRepairOfWhatIsNotUTF8(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	received := make(chan string, 10)
	f.status = func(body []byte) int {
		received <- string(body)
		return http.StatusAccepted
	}
	f.work(func() {
		for i, body := range []string{
			"{\"user_id\":\"ann\", \"metadata\":{\"n\":1.50,\"name\":\"Zo\xeb\"}}",
			`{"user_id":"bob","metadata":{"mood":"ok \ud83d"}}`,
			`{"user_id":"c\ud83d","metadata":{"plan":"pro"}}`,
		} {
			if _, err := f.conn.Request("userpilot.identify", []byte(body), patience); err != nil {
				t.Fatal(err)
			}
			f.awaitDead(uint64(i) + 1) // so that their numbers are known
		}
		f.says(1, "dlq replay --all --dry-run",
			"skip        2: body: has half a surrogate pair after byte …; --replace-invalid repairs it",
			"skip        1: body: is not valid UTF-8; --replace-invalid repairs it", "none of them can be replayed")
		f.says(1, "dlq replay 1 --set .metadata.x=1 --dry-run", "skip        1: edit: has text that is not UTF-8; --replace-invalid repairs it")
		f.says(0, "dlq show 2", "text that is not UTF-8 is shown as \ufffd, first at byte 40, in .metadata.mood: identify-worker dlq replay 2 --replace-invalid sends it so")
		f.says(0, "dlq show 1 --json", `"replaced":[{"byte":49,"bytes":1,"path":".metadata.name"}]`)
		f.says(0, "dlq show 2 --json --reveal", `"event":{"user_id":"bob","metadata":{"mood":"ok `+"\ufffd"+`"}}`, `"replaced":[{"byte":40,"bytes":6,"path":".metadata.mood"}]`)
		f.says(0, "dlq replay --all --replace-invalid --rate 0 --wait --yes",
			"  dead letter 1\n    ~ .metadata.name: byte 49 is not UTF-8 -> \ufffd\n",
			"  dead letter 2\n    ~ .metadata.mood: byte 40 is half a surrogate pair -> \ufffd\n",
			"skip        1: edit: its user_id is not UTF-8, so its user is unknown: --set user_id=ID and --force name one",
			"outcomes: 2 delivered, 0 superseded, 0 dead again")
		f.says(0, "dlq history", "--replace-invalid")
	})
	close(received)
	got := map[string]bool{}
	for body := range received {
		got[body] = true
	}
	for _, want := range []string{"{\"user_id\":\"ann\", \"metadata\":{\"n\":1.50,\"name\":\"Zo\ufffd\"}}", "{\"user_id\":\"bob\",\"metadata\":{\"mood\":\"ok \ufffd\"}}"} {
		if !got[want] {
			t.Errorf("%s is not among %v", want, got)
		}
	}
}

// awaitDead waits until so many dead letters are stored.
func (f *fixture) awaitDead(letters uint64) {
	f.t.Helper()
	q, err := queue.New(f.conn, queue.Topology{}, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	var counts queue.Counts
	stored := poll(func() bool {
		if counts, err = q.Counts(f.t.Context()); err != nil {
			f.t.Fatal(err)
		}
		return counts.DeadLetters == letters
	})
	if !stored {
		f.t.Fatalf("%d dead letters\n%s", counts.DeadLetters, f.log.String())
	}
}

// says runs a command, and checks its status and what it prints.
func (f *fixture) says(status int, command string, texts ...string) {
	f.t.Helper()
	var out bytes.Buffer
	if got := run(f.t.Context(), strings.Fields(command), strings.NewReader(""), &out, &out, func(name string) string { return f.env[name] }); got != status {
		f.t.Errorf("%s: status %d", command, got)
	}
	for _, text := range texts {
		if !strings.Contains(out.String(), text) {
			f.t.Errorf("%s does not say %q:\n%s", command, text, out.String())
		}
	}
}
