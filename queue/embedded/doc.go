// Package embedded runs a NATS server with JetStream inside this process, so that one
// person on one machine needs nothing else.
//
// Its laws:
//
//   - What was acknowledged is on the disk: every write is synced before its
//     acknowledgement, which NATS does not do by default. Only [Config.NoSync] turns that
//     off, for tests and measurements.
//   - A directory belongs to one server at a time. A lock file says so, and the operating
//     system releases it however the process ends.
//   - [Server.Shutdown] blocks until the last goroutine is gone, so a server also lives
//     inside a testing/synctest bubble. There the caller of the test must have called
//     ats.Register (nats-server/v2/server/ats) once outside any bubble: its ticker
//     belongs to the whole process.
//
// The build tag noembed leaves the server out; [Start] then returns [ErrLeftOut].
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
	// Dir holds the streams and the lock file. It is created if missing.
	Dir string
	// Listen is the host:port for NATS clients; port 0 takes a free one. Empty: no socket
	// is opened and [Server.Connect] is the only way in. There is no password, so
	// anything but a loopback address is logged as a warning.
	Listen string
	// NoSync leaves syncing to the operating system. A crash of the machine then loses up
	// to two minutes of acknowledged events; a crash of the process loses nothing.
	NoSync bool
	// Log receives what the server says: notices as debug, all else as warnings. Nil
	// discards.
	Log *slog.Logger
}

// LockedError says that another process works on the directory.
type LockedError struct{ Dir string }

// Error names the directory and the way out.
func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is in use by another identify-worker: stop that one, or give another directory with --store", e.Dir)
}

// ListenError says that the address could not be listened on.
type ListenError struct {
	Address string
	Err     error
}

// Error names the address, the flag and the way out.
func (e *ListenError) Error() string {
	return fmt.Sprintf("listen on %s: %v (stop what listens there, or give another address with --nats-listen; port 0 takes a free one)", e.Address, e.Err)
}

// Unwrap returns the operating system's error.
func (e *ListenError) Unwrap() error { return e.Err }
