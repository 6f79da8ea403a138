package userpilot

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
)

// addrPolicy decides which addresses a client may connect to. The dialer applies it to the
// resolved address, before anything is sent: otherwise an attacker who controls a DNS answer
// could direct our key and our requests to a machine inside the network.
type addrPolicy int

const (
	// publicOnly is for Userpilot's own hosts, which are on the public internet.
	publicOnly addrPolicy = iota
	// loopbackOnly is for this machine: the policy does not trust the hosts file for
	// "localhost", because plain http is allowed there.
	loopbackOnly
	// anywhere is for hosts that the operator has named.
	anywhere
)

// The errors of an endpoint that must be named in [ClientConfig.AllowHosts] to be called.
var (
	// ErrHostNotAllowed says that the endpoint's host is not Userpilot's.
	ErrHostNotAllowed = errors.New("the host is neither under userpilot.io nor one that the operator has allowed")
	// ErrNotPublic says that a host of Userpilot's has no public address.
	ErrNotPublic = errors.New("a Userpilot host resolves to an address of a private network or of this machine: is DNS correct? If so, the operator must allow the host")
)

var (
	errNotLoopback = errors.New("localhost resolves to an address of another machine")
)

// control is the Control function of a [net.Dialer].
func (p addrPolicy) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("not an address: %w", err)
	}
	return p.check(ap.Addr())
}

func (p addrPolicy) check(a netip.Addr) error {
	a = a.Unmap()
	switch {
	case p == publicOnly && !isPublic(a):
		return ErrNotPublic
	case p == loopbackOnly && !a.IsLoopback():
		return errNotLoopback
	}
	return nil
}

// isPublic reports whether an address is on the public internet: not in IANA's registries of
// special-purpose addresses.
func isPublic(a netip.Addr) bool {
	if a.Is4() {
		return !inAny(a,
			"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
			"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
			"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")
	}
	if inAny(a, "64:ff9b::/96") { // NAT64: the last four bytes are the real address
		b := a.As16()
		return isPublic(netip.AddrFrom4([4]byte(b[12:])))
	}
	return inAny(a, "2000::/3") && !inAny(a, "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
}

func inAny(a netip.Addr, prefixes ...string) bool {
	for _, p := range prefixes {
		if netip.MustParsePrefix(p).Contains(a) {
			return true
		}
	}
	return false
}
