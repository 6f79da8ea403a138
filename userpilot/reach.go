package userpilot

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
)

// reach is which addresses a client may connect to. It is asked of the address itself,
// after the name was resolved and before anything is sent: whoever controls an answer of
// the DNS could otherwise turn our key, or our requests, to a machine within the network.
type reach int

const (
	// publicOnly is for Userpilot's own hosts, which are in the internet.
	publicOnly reach = iota
	// loopbackOnly is for this machine: what its hosts file says of "localhost" is not
	// believed, as plain http is allowed there.
	loopbackOnly
	// anywhere is for hosts that were named by whoever runs this.
	anywhere
)

var (
	errNotPublic   = errors.New("a host of Userpilot's has the address of a private network or of this machine: is the DNS right? If so, see --allow-endpoint")
	errNotLoopback = errors.New("localhost has an address of another machine")
)

// control is a [net.Dialer]'s Control.
func (r reach) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("not an address: %w", err)
	}
	return r.check(ap.Addr())
}

func (r reach) check(a netip.Addr) error {
	a = a.Unmap()
	switch {
	case r == publicOnly && !isPublic(a):
		return errNotPublic
	case r == loopbackOnly && !a.IsLoopback():
		return errNotLoopback
	}
	return nil
}

// isPublic reports whether an address is one of the internet: not in what IANA's
// registries of special-purpose addresses hold.
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
