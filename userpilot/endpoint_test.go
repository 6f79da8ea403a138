package userpilot_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
)

func TestNewClientEndpoint(t *testing.T) {
	t.Parallel()
	const (
		notURL   = "endpoint: is not a URL such as https://analytex.userpilot.io"
		stranger = "endpoint: the host is neither under userpilot.io nor one that the operator has allowed"
		plain    = "endpoint: plain http is allowed only to this machine: give https"
		twice    = "endpoint: leave /v1/identify out: the client adds it"
		tlsPort  = "endpoint: port 443 takes https, not http"
	)
	for _, test := range []struct {
		endpoint string
		insecure bool
		allow    string
		err      string
	}{
		// Userpilot's own hosts.
		{"", false, "", ""},
		{"https://analytex-eu.userpilot.io", false, "", ""},
		{"https://analytex.userpilot.io/", false, "", ""},
		{"https://ANALYTEX.Userpilot.IO.", false, "", ""},
		{"https://dedicated.eu.userpilot.io:8443/prefix", false, "", ""},
		{"http://analytex.userpilot.io", false, "", plain},
		{"http://analytex.userpilot.io", true, "", ""},
		{" https://analytex.userpilot.io\n", false, "", ""},
		// More than the endpoint.
		{"https://analytex.userpilot.io/v1/identify", false, "", twice},
		{"https://analytex.userpilot.io/v1/identify/", false, "", twice},
		{"https://analytex.userpilot.io/v1", false, "", twice},
		{"https://analytex.userpilot.io/v1/", false, "", twice},
		{"https://analytex.userpilot.io/prefix/v1//", false, "", twice},
		{"https://analytex.userpilot.io/v1/prefix", false, "", ""},
		{"https://analytex.userpilot.io/av1", false, "", ""},
		{"http://analytex.userpilot.io:443", true, "", tlsPort},
		{"http://127.0.0.1:443", false, "", tlsPort},
		{"https://analytex.userpilot.io:443", false, "", ""},
		// Hosts that only look like them.
		{"https://userpilot.io", false, "", stranger},
		{"https://.userpilot.io", false, "", notURL},
		{"https://evil.example/.userpilot.io", false, "", stranger},
		{"https://eviluserpilot.io", false, "", stranger},
		{"https://analytex.userpilot.io.evil.example", false, "", stranger},
		{"https://analytex.userpilot.io@evil.example", false, "", "endpoint: must not contain a user name or a password"},
		{"https://evil.example\\.userpilot.io", false, "", notURL},
		{"https://evil.example%2f.userpilot.io", false, "", notURL},
		{"https://analytex.userpilot\u3002io", false, "", notURL},
		{"https://evil\uff0eexample\uff0f.userpilot.io", false, "", notURL},
		// This machine.
		{"http://127.0.0.1:8080", false, "", ""},
		{"http://localhost:8080", false, "", ""},
		{"http://[::1]:8080", false, "", ""},
		{"https://127.0.0.1:8443", false, "", ""},
		{"http://localhost.example", false, "", plain},
		{"http://0.0.0.0:1", false, "", plain},
		{"http://127.1:1", false, "", plain},
		// Other hosts, allowed by name or insecure.
		{"https://proxy.example:8443/userpilot", false, "", stranger},
		{"https://proxy.example:8443/userpilot", true, "", stranger},
		{"https://proxy.example:8443/userpilot", false, "other.example,proxy.example", ""},
		{"https://Proxy.Example.", false, "proxy.example", ""},
		{"https://a.proxy.example", false, "proxy.example", stranger},
		{"https://10.0.0.7", false, "10.0.0.7", ""},
		{"https://[fd00:0:0::7]", false, "fd00::7", ""},
		{"https://10.0.0.7", false, "10.0.0.8", stranger},
		{"http://stand-in:8080", true, "", ""},
		{"http://stand-in:8080", false, "", plain},
		{"http://stand-in:8080", false, "stand-in", plain},
		{"https://a.example", false, "https://a.example", `allow-endpoint: "https://a.example" is not a host such as proxy.example or 10.0.0.7`},
		{"", false, "a.example,", `allow-endpoint: "" is not a host such as proxy.example or 10.0.0.7`},
		// Not an endpoint.
		{"ftp://analytex.userpilot.io", false, "", "endpoint: the scheme must be https or http"},
		{"analytex.userpilot.io", false, "", notURL},
		{"https:analytex.userpilot.io", false, "", notURL},
		{"https://", false, "", notURL},
		{"https://host:99999", false, "", notURL},
		{"https://user:hunter2@host:x", false, "", notURL},
		{"https://user:hunter2@host", false, "", "endpoint: must not contain a user name or a password"},
		{"https://host?a=b", false, "", "endpoint: must not have a query or a fragment"},
		{"https://host?", false, "", "endpoint: must not have a query or a fragment"},
		{"https://host#", false, "", "endpoint: must not have a query or a fragment"},
		{"https://host/" + strings.Repeat("x", 2048), false, "", "endpoint: is longer than 2048 bytes"},
	} {
		t.Run(fmt.Sprintf("%.40s %v %s", test.endpoint, test.insecure, test.allow), func(t *testing.T) {
			t.Parallel()
			cfg := userpilot.ClientConfig{Endpoint: test.endpoint, AllowInsecure: test.insecure, Key: newKey(t, testKey)}
			if test.allow != "" {
				cfg.AllowHosts = strings.Split(test.allow, ",")
			}
			_, err := userpilot.NewClient(cfg)
			if err == nil && test.err != "" || err != nil && err.Error() != test.err {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

func TestNewClientRefuses(t *testing.T) {
	t.Parallel()
	key := newKey(t, testKey)
	const encode = "proxy: a user or password with one of / ? # and @ must be percent-encoded (%2F %3F %23 %40)"
	for _, test := range []struct {
		config userpilot.ClientConfig
		want   string
	}{
		{userpilot.ClientConfig{}, "API key: is missing"},
		{userpilot.ClientConfig{Key: key, MaxConns: -1}, "connections: cannot be negative"},
		{userpilot.ClientConfig{Key: key, Proxy: "proxy.example:3128"}, "proxy: is not a URL such as http://proxy.example:3128"},
		{userpilot.ClientConfig{Key: key, Proxy: "socks5://u:hunter2@proxy.example"}, "proxy: is not a URL such as http://proxy.example:3128"},
		{userpilot.ClientConfig{Key: key, Proxy: "http://u:12/hunter2@proxy.example"}, encode},
		{userpilot.ClientConfig{Key: key, Proxy: "http://u:hunter2?x@proxy.example:3128"}, encode},
		{userpilot.ClientConfig{Key: key, Proxy: "http://u:12#hunter2@proxy.example:3128"}, encode},
		{userpilot.ClientConfig{Key: key, Proxy: "https://u:hunter2@x@proxy.example:3128"}, encode},
		{userpilot.ClientConfig{Key: key, Proxy: "http://proxy.example/" + strings.Repeat("x", 1024)}, "proxy: is longer than 1024 bytes"},
	} {
		if _, err := userpilot.NewClient(test.config); err == nil || err.Error() != test.want {
			t.Errorf("error %v, want %s", err, test.want)
		}
	}
	if _, err := userpilot.NewClient(userpilot.ClientConfig{Key: key, Proxy: "http://u:hun%2Fter2@proxy.example:3128"}); err != nil {
		t.Error(err)
	}
}
