//go:build !noembed

package queuetest

import (
	"net"
	"slices"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// WithUsers replaces the server by one with two users, and connects both: all may do everything,
// few may only publish to these subjects.
func (s *Sim) WithUsers(allowed []string) (all, few *nats.Conn) {
	s.T.Helper()
	auth := s.ServeUsers(Users{"all": {">"}, "few": allowed})
	return auth.Connect("all"), auth.Connect("few")
}

// Users maps each user to the subjects that the user may publish to; ">" allows everything.
type Users map[string][]string

// Auth is a server with [Users]. It stops at the end of the test.
type Auth struct {
	sim     *Sim
	server  *natsserver.Server
	options *natsserver.Options
}

// ServeUsers replaces the server by one with these users, and with these of the server's feature
// flags enabled.
func (s *Sim) ServeUsers(u Users, flags ...string) *Auth {
	s.T.Helper()
	s.Stop()
	options := &natsserver.Options{JetStream: true, StoreDir: s.Dir(), DontListen: true, NoSigs: true, JetStreamMaxMemory: 1 << 20, Users: u.users("_INBOX.>"), FeatureFlags: map[string]bool{}}
	for _, flag := range flags {
		options.FeatureFlags[flag] = true
	}
	n, err := natsserver.NewServer(options)
	s.Must(err)
	n.Start()
	s.T.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	return &Auth{s, n, options}
}

// users returns the server's form of u. Users may only subscribe to their inboxes.
func (u Users) users(inboxes string) (users []*natsserver.User) {
	for user, subjects := range u {
		x := &natsserver.User{Username: user, Password: "x"}
		if !slices.Equal(subjects, []string{">"}) {
			x.Permissions = &natsserver.Permissions{
				Publish:   &natsserver.SubjectPermission{Allow: subjects},
				Subscribe: &natsserver.SubjectPermission{Allow: []string{inboxes}},
			}
		}
		users = append(users, x)
	}
	return users
}

// Connect connects a user, until the end of the test. The client reconnects.
func (x *Auth) Connect(user string) *nats.Conn {
	x.sim.T.Helper()
	return x.connect(user, x.server)
}

// ConnectFrom is [Auth.Connect] at a distance.
func (x *Auth) ConnectFrom(d Distance, user string) *nats.Conn {
	x.sim.T.Helper()
	return x.connect(user, farAuth{x, d})
}

func (x *Auth) connect(user string, via nats.InProcessConnProvider) *nats.Conn {
	x.sim.T.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(via), nats.UserInfo(user, "x"), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(0, 0), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	x.sim.Must(err)
	x.sim.T.Cleanup(nc.Close)
	return nc
}

// farAuth dials the server at a distance.
type farAuth struct {
	*Auth
	Distance
}

// InProcessConn implements nats.InProcessConnProvider.
func (f farAuth) InProcessConn() (net.Conn, error) {
	near, err := f.server.InProcessConn()
	if err != nil {
		return nil, err
	}
	return f.Over(near), nil
}

// Change changes users' permissions while they are connected, as a reload of the configuration
// does. inboxes are the subjects that they may subscribe to.
func (x *Auth) Change(u Users, inboxes string) {
	x.sim.T.Helper()
	next := x.options.Clone()
	next.Users = u.users(inboxes)
	x.sim.Must(x.server.ReloadOptions(next))
}

// LimitConsumers bounds the consumers that each stream may have.
func (x *Auth) LimitConsumers(n int) {
	x.sim.T.Helper()
	limits := natsserver.JetStreamAccountLimits{MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: n}
	x.sim.Must(x.server.GlobalAccount().UpdateJetStreamLimits(map[string]natsserver.JetStreamAccountLimits{"": limits}))
}
