//go:build !noembed

package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/asynclog"
)

// maxMemory bounds memory streams. This product has none; without a bound the server
// would offer three quarters of the machine's memory to any client.
const maxMemory = 32 << 20

// Server is a running server. Its methods are safe for concurrent use.
type Server struct {
	nats   *server.Server
	listen bool
	lock   *flock.Flock
	stop   sync.Once
}

// Start starts a server and returns when it accepts connections. The error is a
// [*LockedError], a [*ListenError], or describes what is wrong with the directory.
func Start(c Config) (*Server, error) {
	c.Log = asynclog.Wrap(c.Log)
	options, err := c.options()
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	n, err := boot(options, c)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Server{nats: n, listen: c.Listen != "", lock: lock}, nil
}

// Connect opens an in-process connection, without a socket. The caller must close it.
func (s *Server) Connect(options ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect("", append(options, nats.InProcessServer(s))...)
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded server: %w", err)
	}
	return nc, nil
}

// InProcessConn opens a raw connection. It implements the interface for [nats.InProcessServer].
func (s *Server) InProcessConn() (net.Conn, error) { return s.nats.InProcessConn() }

// ClientURL returns the URL for other processes, with the actual port; empty without a
// socket.
func (s *Server) ClientURL() string {
	if !s.listen {
		return ""
	}
	return s.nats.ClientURL()
}

// Shutdown closes all connections, writes pending data and releases the directory. It
// blocks until that is done, and may be called more than once.
func (s *Server) Shutdown() {
	s.stop.Do(func() {
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
		_ = s.lock.Close() // the end of the process would release it too
	})
}

func (c Config) options() (*server.Options, error) {
	if c.Dir == "" {
		return nil, errors.New("start the embedded server: no directory given")
	}
	options := &server.Options{
		ServerName:             "identify-worker",
		JetStream:              true,
		StoreDir:               c.Dir,
		SyncAlways:             !c.NoSync,
		JetStreamMaxMemory:     maxMemory,
		DontListen:             c.Listen == "",
		NoSigs:                 true, // signals belong to main
		DisableJetStreamBanner: true,
	}
	if c.Listen == "" {
		return options, nil
	}
	host, port, err := splitAddress(c.Listen)
	if err != nil {
		return nil, &ListenError{Address: c.Listen, Err: err}
	}
	options.Host, options.Port = host, port
	return options, nil
}

func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, errors.New("is not host:port")
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, errors.New("the port is not a number from 0 to 65535")
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

// lockDir creates the directory and locks it. The operating system holds the lock, so a
// crash leaves nothing to clean up.
func lockDir(dir string) (*flock.Flock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the store's directory: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
	taken, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock the store's directory: %w", err)
	}
	if !taken {
		return nil, &LockedError{Dir: dir}
	}
	return lock, nil
}

// boot starts the server. The server's Start method returns when it listens or has logged
// a fatal error; that log line is the only source of the reason.
func boot(options *server.Options, c Config) (*server.Server, error) {
	n, err := server.NewServer(options)
	if err != nil {
		return nil, fmt.Errorf("configure the embedded server: %w", err)
	}
	log := &serverLog{log: c.Log}
	n.SetLoggerV2(log, false, false, false)
	n.Start()
	if err := log.fatal(); err != nil {
		n.Shutdown()
		n.WaitForShutdown()
		if refused, ok := errors.AsType[*net.OpError](err); ok {
			return nil, &ListenError{Address: c.Listen, Err: cause(refused)}
		}
		return nil, fmt.Errorf("start the embedded server: %w", err)
	}
	warnIfOpen(c.Log, n)
	return n, nil
}

// cause returns the operating system's error without the address, which [ListenError]
// already names.
func cause(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number
	}
	return err
}

func warnIfOpen(log *slog.Logger, n *server.Server) {
	address, ok := n.Addr().(*net.TCPAddr)
	if ok && !address.IP.IsLoopback() {
		log.Warn("the embedded NATS server is open to other machines and asks for no password", "address", address.String())
	}
}
