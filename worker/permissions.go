package worker

import (
	"slices"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

// Permissions lists the permissions that a worker's user needs on existing streams, the optional
// ones last. To create the streams it also needs to publish to $JS.API.STREAM.CREATE.<stream>. With
// a [queue.ConnectConfig.InboxPrefix], it must be allowed to subscribe to that prefix instead of
// _INBOX.
func Permissions(t queue.Topology) []queue.Permission {
	all := slices.Concat(fleet.Permissions(t), deadletter.Permissions(t))
	slices.SortStableFunc(all, func(a, b queue.Permission) int {
		switch {
		case a.Optional == b.Optional:
			return 0
		case b.Optional:
			return -1
		}
		return 1
	})
	return all
}
