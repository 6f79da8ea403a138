package userpilot

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

const (
	// DefaultEndpoint is Userpilot's environment in the US.
	DefaultEndpoint = "https://analytex.userpilot.io"

	// ownDomain is the parent domain of all of Userpilot's environments.
	ownDomain = ".userpilot.io"

	// maxEndpointBytes keeps a request's header within one write, like maxKeyBytes.
	maxEndpointBytes = 2 << 10
)

// endpoint is the URL that a client calls, and the addresses that its host may have.
type endpoint struct {
	url    *url.URL
	policy addrPolicy
}

// newEndpoint parses and checks an endpoint. Its errors do not contain the endpoint, which
// may include a password.
func newEndpoint(text string, cfg ClientConfig) (endpoint, error) {
	u, host, err := parseEndpoint(text)
	if err != nil {
		return endpoint{}, err
	}
	named, err := isNamed(host, cfg.AllowHosts)
	if err != nil {
		return endpoint{}, err
	}
	insecure := u.Scheme == "http"
	switch {
	case isLoopback(host):
		return endpoint{u, loopbackOnly}, nil
	case insecure && !cfg.AllowInsecure:
		return endpoint{}, errors.New("endpoint: plain http is allowed only to this machine: give https")
	case named:
		return endpoint{u, anywhere}, nil
	case strings.HasSuffix(host, ownDomain):
		return endpoint{u, publicOnly}, nil
	case insecure:
		return endpoint{u, anywhere}, nil // AllowInsecure already gives up more than this check protects
	}
	return endpoint{}, fmt.Errorf("endpoint: %w", ErrHostNotAllowed)
}

// parseEndpoint parses an endpoint and checks its form; host is canonical.
func parseEndpoint(text string) (u *url.URL, host string, err error) {
	text = strings.TrimSpace(text)
	u, err = url.Parse(text)
	if err == nil {
		host = canonicalHost(u.Hostname())
	}
	switch {
	case err != nil || u.Opaque != "" || host == "" || !isPort(u.Port()):
		return nil, "", errors.New("endpoint: is not a URL such as " + DefaultEndpoint)
	case len(text) > maxEndpointBytes:
		return nil, "", fmt.Errorf("endpoint: is longer than %d bytes", maxEndpointBytes)
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, "", errors.New("endpoint: the scheme must be https or http")
	case u.User != nil:
		return nil, "", errors.New("endpoint: must not contain a user name or a password")
	case strings.ContainsAny(text, "?#"):
		return nil, "", errors.New("endpoint: must not have a query or a fragment")
	case u.Scheme == "http" && u.Port() == "443":
		return nil, "", errors.New("endpoint: port 443 takes https, not http")
	case isCallPath(u.Path):
		return nil, "", errors.New("endpoint: leave /v1/identify out: the client adds it")
	}
	u.Path = "/" + strings.TrimPrefix(u.Path, "/") // JoinPath keeps a relative path relative
	return u, host, nil
}

// isCallPath reports whether a path ends as that of a call does, so that it would be there twice.
func isCallPath(path string) bool {
	path = strings.TrimRight(path, "/")
	return strings.HasSuffix(path, "/v1") || strings.HasSuffix(path, "/v1/identify")
}

// canonicalHost returns the form in which hosts are compared, or "" if host is not valid.
// Names must be ASCII: net/http would convert others into names that were never checked.
func canonicalHost(host string) string {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().String()
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	odd := strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != ""
	if odd || strings.HasPrefix(host, ".") || strings.Contains(host, "..") {
		return ""
	}
	return host
}

// isNamed reports whether host is in allowed.
func isNamed(host string, allowed []string) (bool, error) {
	named := false
	for _, name := range allowed {
		canonical := canonicalHost(name)
		if canonical == "" {
			return false, fmt.Errorf("allow-endpoint: %q is not a host such as proxy.example or 10.0.0.7", name)
		}
		named = named || canonical == host
	}
	return named, nil
}

func isPort(port string) bool {
	if port == "" {
		return true
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
