package queue

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

func TestCheckServerVersion(t *testing.T) {
	t.Parallel()
	for version, old := range map[string]bool{
		"2.10.29": true, "2.9.25": true, "1.4.1": true, "2.10.0-beta.1": true,
		"2.11.0": false, "2.11.0-preview.2": false, "2.15.2": false, "2.100.0": false, "3.0.0": false, "": false, "main": false,
	} {
		if err := CheckServerVersion(version); (err != nil) != old {
			t.Errorf("%q: %v", version, err)
		}
	}
}

// oldServer is the greeting of a server, and the answers to pings.
type oldServer struct{ version string }

func (s oldServer) InProcessConn() (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.WriteString(theirs, `INFO {"server_id":"A","version":"`+s.version+`","proto":1,"headers":true,"max_payload":1048576,"jetstream":true}`+"\r\n")
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "PING") {
				_, _ = io.WriteString(theirs, "PONG\r\n")
			}
		}
	}()
	return ours, nil
}

// An old server is refused before anything is created on it.
func TestSetupRefusesAnOldServer(t *testing.T) {
	t.Parallel()
	nc, err := nats.Connect("", nats.InProcessServer(oldServer{"2.10.29"}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	q, err := New(nc, Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = q.AwaitSetup(t.Context(), -1, false)
	if old, ok := errors.AsType[*OldServerError](err); !ok || old.Version != "2.10.29" || !strings.Contains(err.Error(), "version 2.10.29, which is too old: upgrade it to 2.11 or newer") {
		t.Errorf("got %v", err)
	}
}
