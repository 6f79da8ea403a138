//go:build !noembed

package demo

import (
	"testing"

	"github.com/identify-worker/identify-worker/queue/embedded"
)

// A letter that was tried twice is one letter.
func TestDemoCountsLetters(t *testing.T) {
	t.Parallel()
	server, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	conn, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	d := &Demo{Config: Config{Conn: conn}}
	if d.dead, err = conn.SubscribeSync("userpilot.identify-dlq.>"); err != nil {
		t.Fatal(err)
	}
	for _, letter := range []string{"1.7", "1.8", "1.7"} {
		if err := conn.Publish("userpilot.identify-dlq."+letter, nil); err != nil {
			t.Fatal(err)
		}
	}
	if letters, err := d.deadLetters(); err != nil || len(letters) != 2 {
		t.Errorf("%d letters are seen (%v)", len(letters), err)
	}
}
