package queue

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// MinServerVersion is the oldest NATS server that the pipeline works on: it is the first that lets
// messages expire one by one, and that reads the last messages of several subjects at once. Older
// ones create the streams and ignore what they do not know.
const MinServerVersion = "2.11"

// OldServerError says that a NATS server is older than [MinServerVersion].
type OldServerError struct {
	Version string // of the server
}

// Error names both versions.
func (e *OldServerError) Error() string {
	return fmt.Sprintf("the NATS server has version %s, which is too old: upgrade it to %s or newer", e.Version, MinServerVersion)
}

// CheckServerVersion returns an [*OldServerError] if a server's version is older than
// [MinServerVersion]. It accepts a version that it cannot read.
func CheckServerVersion(version string) error {
	var have, least struct{ major, minor int }
	if _, err := fmt.Sscanf(version, "%d.%d", &have.major, &have.minor); err != nil {
		return nil
	}
	_, _ = fmt.Sscanf(MinServerVersion, "%d.%d", &least.major, &least.minor)
	if have.major < least.major || have.major == least.major && have.minor < least.minor {
		return &OldServerError{Version: version}
	}
	return nil
}

// checkServer checks the connected server's version, unless another domain has the streams. It returns
// [nats.ErrDisconnected] before there is a server.
func (q *Queue) checkServer() error {
	if q.api.NATS.MaxPayload() == 0 { // without which no stream can be configured
		return nats.ErrDisconnected
	}
	if q.topology.Domain != "" && q.topology.Domain != q.api.NATS.ConnectedDomain() {
		return nil
	}
	return CheckServerVersion(q.api.NATS.ConnectedServerVersion())
}
