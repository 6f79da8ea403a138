package jsapi

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// DefaultInboxPrefix is the prefix of the subjects that receive replies if none is configured.
const DefaultInboxPrefix = "_INBOX"

// PermissionError says that the NATS server's permissions forbid this connection's user an
// operation. It is also an [ErrNotPermitted]. The operation did not happen. If Subscribe is set, it
// may have happened, and only its answer could not be received.
type PermissionError struct {
	// Subject is what must be allowed, as in the server's configuration: with wildcards for users,
	// consumers and keys.
	Subject string
	// Subscribe says that the user must be allowed to subscribe to Subject; otherwise to publish to
	// it.
	Subscribe bool
}

// Error names the missing permission and how to grant it. It never names a user.
func (e *PermissionError) Error() string {
	way := ""
	if e.Subscribe {
		way = "; or set the connection's inbox prefix if this user has its own"
	}
	return fmt.Sprintf("not permitted: allow this NATS user to %v%s; deployments/nats/users.conf lists the permissions of each role", Permission{Subject: e.Subject, Subscribe: e.Subscribe}, way)
}

// Is makes a PermissionError an [ErrNotPermitted].
func (e *PermissionError) Is(target error) bool { return target == ErrNotPermitted }

// AsPermissionError returns the [PermissionError] in err, or nil.
func AsPermissionError(err error) *PermissionError {
	denied, _ := errors.AsType[*PermissionError](err)
	return denied
}

// Denied is the error of an operation without this permission.
func (r Permission) Denied() *PermissionError {
	return &PermissionError{Subject: r.Subject, Subscribe: r.Subscribe}
}

// ErrNotPermitted says that the server's permissions forbid something. The error is a
// [*PermissionError] that names it.
var ErrNotPermitted = errors.New("not permitted")

// Permission is a permission that a NATS user needs.
type Permission struct {
	// Subject may contain wildcards, as in a server's configuration.
	Subject string
	// Subscribe is true for permission to subscribe, false for permission to publish.
	Subscribe bool
	// Use is why a worker needs it.
	Use string
	// Optional says that workers run without it, except for Use.
	Optional bool

	// Probe is a subject that it covers and that nothing uses. [Conn.IsPermitted] uses it.
	Probe string
	// Overheard says that clients, and not only the server, may subscribe to the subject.
	Overheard bool
	// NewAcks says that only servers with js_ack_fc_v2 enabled require it.
	NewAcks bool
}

// String is "publish to ..." or "subscribe to ...".
func (r Permission) String() string {
	if r.Subscribe {
		return "subscribe to " + r.Subject
	}
	return "publish to " + r.Subject
}

// The permissions to make requests. Where there are many subjects, the permission is a wildcard,
// which errors show as well: the subjects themselves contain users.

// ToPublish is the permission to publish to one subject.
func ToPublish(subject string) Permission { return Permission{Subject: subject, Probe: subject} }

// ToRequest is the permission to make a request to JetStream.
func ToRequest(request string) Permission { return ToPublish("$JS.API." + request) }

// ToRequestConsumer is the permission to make a request about any of a stream's consumers.
func ToRequestConsumer(request string) Permission {
	return Permission{Subject: "$JS.API." + request + ".*", Probe: "$JS.API." + request + "." + UnknownName}
}

// UnknownName stands for a consumer, a key or an account that does not exist.
const UnknownName = "identify-worker-doctor"

// InboxRight is the permission to receive replies on this connection.
func (c *Conn) InboxRight() Permission {
	return Permission{Subject: c.Inboxes(), Probe: strings.TrimSuffix(c.Inboxes(), ">") + UnknownName, Subscribe: true}
}

// Inboxes is the subject wildcard on which this connection receives replies.
func (c *Conn) Inboxes() string {
	return cmp.Or(c.NATS.Opts.InboxPrefix, DefaultInboxPrefix) + ".>"
}

// Own replaces the default inboxes in a list of permissions by those of this connection, and
// converts the requests to its domain.
func (c *Conn) Own(permissions []Permission) []Permission {
	permissions = slices.Clone(permissions)
	for i, p := range permissions {
		permissions[i] = c.in(p)
		if p.Subscribe {
			inbox := c.InboxRight()
			permissions[i].Subject, permissions[i].Probe = inbox.Subject, inbox.Probe
		}
	}
	return permissions
}
