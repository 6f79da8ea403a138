//go:build noembed

package embedded

import (
	"net"

	"github.com/nats-io/nats.go"
)

// Server replaces the server that this build omits; [Start] never returns one.
type Server struct{}

// Start returns [ErrLeftOut].
func Start(Config) (*Server, error) { return nil, ErrLeftOut }

// Connect returns [ErrLeftOut].
func (*Server) Connect(...nats.Option) (*nats.Conn, error) { return nil, ErrLeftOut }

// InProcessConn returns [ErrLeftOut].
func (*Server) InProcessConn() (net.Conn, error) { return nil, ErrLeftOut }

// ClientURL returns the empty string.
func (*Server) ClientURL() string { return "" }

// Shutdown does nothing.
func (*Server) Shutdown() {}
