package flags

import (
	"errors"
	"testing"

	"github.com/identify-worker/identify-worker/queue"
)

// What is wrong is named by its flag, before a server is dialled.
func TestOpenNamesTheFlag(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		topology queue.Topology
		domain   string
		want     string
	}{
		"name":     {queue.Topology{Name: "A.B"}, "", "--name: must be lower-case letters, digits, - and _, at most 64"},
		"replicas": {queue.Topology{Replicas: 2}, "far", "--replicas: 2 is not 1, 3 or 5"},
		"domain":   {queue.Topology{}, "a.b", "--nats-domain: must be the JetStream domain of a NATS server: letters, digits, - and _"},
		"both":     {queue.Topology{Name: "A.B"}, "a.b", "--name: must be lower-case letters, digits, - and _, at most 64"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := (&Connection{domain: test.domain}).Open(t.Context(), test.topology, nil)
			if _, usage := errors.AsType[*UsageError](err); !usage || err.Error() != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}
