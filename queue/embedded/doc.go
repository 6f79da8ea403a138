// Package embedded runs a NATS server with JetStream inside this process, so that a
// single-machine setup needs nothing else.
//
// Its laws:
//
//   - Acknowledged data is on disk: the server syncs every write before it acknowledges
//     it, which NATS does not do by default. Only [Config.NoSync] turns that off, for
//     tests and measurements.
//   - A directory belongs to one server at a time. A lock file enforces this, and the
//     operating system releases it however the process ends.
//   - [Server.Shutdown] blocks until the last goroutine is gone, so a server also runs
//     inside a testing/synctest bubble. A test that does this must have called
//     ats.Register (nats-server/v2/server/ats) once outside any bubble: its ticker
//     belongs to the whole process.
//
// The build tag noembed omits the server; [Start] then returns [ErrLeftOut].
package embedded

import (
	"errors"
	"fmt"
	"log/slog"
)

// ErrLeftOut is returned by [Start] in a build with the tag noembed.
var ErrLeftOut = errors.New("this build has no embedded server (it was built with the tag noembed)")

// Config says where a server keeps its streams and where it listens.
type Config struct {
	// Dir is the directory for the streams and the lock file. Start creates it if it does
	// not exist.
	Dir string
	// Listen is the host:port for NATS clients; port 0 chooses a free one. If it is empty the
	// server opens no socket, and [Server.Connect] is the only way to connect. There is no
	// password, so the server logs a warning for any address that is not loopback.
	Listen string
	// NoSync leaves syncing to the operating system. A crash of the machine then loses up
	// to two minutes of acknowledged events; a crash of the process loses nothing.
	NoSync bool
	// Log receives the server's log: notices at debug level, everything else as warnings.
	// Nil discards.
	Log *slog.Logger
}

// LockedError means that another process uses the directory.
type LockedError struct{ Dir string }

// Error names the directory and the remedy.
func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is in use by another identify-worker: stop that one, or use another directory", e.Dir)
}

// ListenError means that the server could not listen on the address.
type ListenError struct {
	Address string
	Err     error
}

// Error names the address and the remedy.
func (e *ListenError) Error() string {
	return fmt.Sprintf("listen on %s: %v (stop what listens there, or use another address; port 0 chooses a free one)", e.Address, e.Err)
}

// Unwrap returns the operating system's error.
func (e *ListenError) Unwrap() error { return e.Err }
