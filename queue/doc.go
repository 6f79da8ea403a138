// Package queue connects a program to a pipeline: the streams in NATS JetStream that hold identify
// events until a worker has delivered them. It names and creates the streams, and publishes events.
//
// An application that publishes needs nothing else. It may also bring a connection of its own:
//
//	nc, err := queue.Connect(ctx, queue.ConnectConfig{URL: "nats://nats:4222"})
//	q, err := queue.New(nc, queue.Topology{}, nil)
//	publisher := q.NewPublisher(queue.PublisherConfig{})
//	defer publisher.Close(ctx)
//	receipt, err := publisher.Publish(ctx, []byte(`{"user_id":"ann","metadata":{"plan":"pro"}}`))
//
// Events are live, or backfill if they are published with [AsBackfill]. Workers call for live events
// first, and backfill gets every call that these leave. The order of both is that of their
// publication: a property that a newer event has set stays, whichever of the two that was.
//
// Workers create the streams, as does the command identify-worker setup. A program that starts
// before them calls [Queue.Setup].
//
// Its invariants:
//
//   - [Publisher] stores an event once, however often it sends it, and stores a user's events in
//     the order of the calls. [Publisher] lists the exceptions.
//   - [Publisher] refuses an event that no worker could deliver, before it sends anything.
//   - A user's live events and backfill are in the same partition.
//   - [Queue.Setup] never changes an existing stream unless its caller asks for that, and changes
//     the number of partitions only while no event waits and no replica runs.
//   - An operation that the server's permissions forbid ends within a second with a
//     [*PermissionError] that names the missing permission.
//   - No error and no log line contains a user's id, a password or a token.
//   - A function blocks only where its comment says so. Handlers of the caller's logger may block:
//     a separate goroutine calls them.
//
// These packages build on it:
//
//   - queue/ratelimit: one exact limit of calls for all replicas.
//   - queue/fleet: the replicas that share the partitions, and their claims.
//   - queue/deadletter: events that could not be delivered, and what their replays must respect.
//   - queue/inspector: what operators do: status, doctor, and work on dead letters.
//
// These stand beside it:
//
//   - queue/embedded: a NATS server within the process.
//   - queue/asynclog: a logger that does not wait for its handler.
//   - queue/queuetest: a real server in fake time, for tests.
//   - queue/internal/jsapi: requests to JetStream, for queue and the packages that build on it.
//
// [Queue.API], [Topology.WorkStream], [Topology.StreamConfigs] and [Compare] are for these
// packages. Nothing else here has a type of nats.go's jetstream package, so an application needs
// none.
package queue
