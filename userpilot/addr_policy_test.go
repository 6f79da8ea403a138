package userpilot

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestAddrPolicy(t *testing.T) {
	t.Parallel()
	const (
		public   = "8.8.8.8 100.63.0.1 100.128.0.1 172.15.0.1 172.32.0.1 223.255.255.255 2606:4700::1 ::ffff:8.8.8.8 64:ff9b::808:808"
		loopback = "127.0.0.1 127.255.0.9 ::1 ::ffff:127.0.0.1"
		private  = "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 169.254.169.254 fc00::1 fd12::1 fe80::1 fe80::1%eth0 " +
			"::ffff:10.0.0.1 64:ff9b::a00:1 64:ff9b:1::a00:1 64:ff9b::a9fe:a9fe 2002:a00:1::1 2001::1"
		nowhere = "0.0.0.0 0.1.2.3 192.0.2.1 198.18.0.1 203.0.113.9 224.0.0.1 240.0.0.1 255.255.255.255 :: ff02::1 100::1 2001:db8::1 3fff::1"
	)
	for _, test := range []struct {
		policy    addrPolicy
		addresses string
		want      error
	}{
		{publicOnly, public, nil},
		{publicOnly, loopback, ErrNotPublic},
		{publicOnly, private, ErrNotPublic},
		{publicOnly, nowhere, ErrNotPublic},
		{loopbackOnly, loopback, nil},
		{loopbackOnly, public, errNotLoopback},
		{loopbackOnly, private, errNotLoopback},
		{loopbackOnly, nowhere, errNotLoopback},
		{anywhere, public, nil},
		{anywhere, loopback, nil},
		{anywhere, private, nil},
	} {
		for address := range strings.FieldsSeq(test.addresses) {
			ap := netip.AddrPortFrom(netip.MustParseAddr(address), 443)
			if err := test.policy.control("tcp", ap.String(), nil); !errors.Is(err, test.want) {
				t.Errorf("%d to %s: %v, want %v", test.policy, address, err, test.want)
			}
		}
	}
	if err := anywhere.control("tcp", "a name:443", nil); err == nil {
		t.Error("a name is no address")
	}
}

// For any endpoint text, the client calls the host that was checked.
func FuzzEndpoint(f *testing.F) {
	for _, text := range []string{
		DefaultEndpoint, "http://localhost:1/a", "https://named.example", "https://[::1]:8443", "http://[fe80::1%25eth0]",
		"https://evil.example\\@analytex.userpilot.io", "https://a.userpilot.io:443@evil.example", "//x", "https://%61.userpilot.io",
	} {
		f.Add(text, true)
	}
	f.Fuzz(func(t *testing.T, text string, insecure bool) {
		e, err := newEndpoint(text, ClientConfig{AllowInsecure: insecure, AllowHosts: []string{"named.example"}})
		if err != nil {
			return
		}
		request := newRequest("POST", e.url.JoinPath("v1", "identify"))
		host := canonicalHost(request.URL.Hostname())
		own, plain := strings.HasSuffix(host, ".userpilot.io"), request.URL.Scheme == "http"
		switch {
		case request.Host != request.URL.Host || request.URL.User != nil || request.URL.RawQuery != "" || !strings.HasSuffix(request.URL.Path, "/v1/identify"):
			t.Errorf("%q calls %v", text, request.URL)
		case isLoopback(host) != (e.policy == loopbackOnly), own != (e.policy == publicOnly):
			t.Errorf("%q may reach %d", text, e.policy)
		case !isLoopback(host) && plain && !insecure:
			t.Errorf("%q is plain", text)
		case !isLoopback(host) && !own && host != "named.example" && !(plain && insecure):
			t.Errorf("%q is a stranger", text)
		}
	})
}
