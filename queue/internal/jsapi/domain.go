package jsapi

import (
	"strings"

	"github.com/nats-io/nats.go"
)

// A JetStream domain tells apart the JetStreams that one connection can reach, as over a leaf node.
// Requests to another domain than the connected server's have other subjects. Everywhere else,
// subjects and permissions are those without a domain; Conn converts them where it uses or shows
// them. The reply subjects of deliveries are used as they come.

// Subject is the subject on which a request to JetStream, or a write to a key, reaches the
// pipeline's domain. It returns other subjects, and converted ones, as they are.
func (c *Conn) Subject(subject string) string {
	if c.domain == "" {
		return subject
	}
	prefix := "$JS." + c.domain + ".API."
	if request, ok := strings.CutPrefix(subject, "$JS.API."); ok {
		return prefix + request
	}
	if strings.HasPrefix(subject, "$KV.") {
		return prefix + subject
	}
	return subject
}

// in converts a permission to the pipeline's domain.
func (c *Conn) in(p Permission) Permission {
	p.Subject, p.Probe = c.Subject(p.Subject), c.Subject(p.Probe)
	return p
}

// Send publishes a message to a stream without waiting for its answer. m must not be used again.
func (c *Conn) Send(m *nats.Msg) error {
	m.Subject = c.Subject(m.Subject)
	return c.NATS.PublishMsg(m)
}
