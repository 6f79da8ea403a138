package queue

import "github.com/identify-worker/identify-worker/queue/internal/jsapi"

// Permission is a permission that a NATS user needs: to publish or to subscribe to a subject. Its
// text is "publish to ..." or "subscribe to ...".
type Permission = jsapi.Permission

// PermissionError says that the NATS server's permissions forbid this connection's user an
// operation. It names the missing permission and is also an [ErrNotPermitted].
type PermissionError = jsapi.PermissionError

// ErrNotPermitted says that the server's permissions forbid something. The error is a
// [*PermissionError].
var ErrNotPermitted = jsapi.ErrNotPermitted

// DefaultInboxPrefix begins the subjects on which a connection without a prefix of its own receives
// replies.
const DefaultInboxPrefix = jsapi.DefaultInboxPrefix
