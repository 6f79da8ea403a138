// Package queue contains everything that touches NATS: the names and sizes of streams and buckets,
// the publisher, membership, claims on partitions, the rate ledger, settlement and dead letters. It
// never exposes types of nats.go's jetstream package.
//
// Its invariants:
//
//   - A replica claims a partition by holding the only consumer on its subject; the server refuses
//     a second one. The package has no lock and no leader of its own.
//   - The [Handler] receives the events of a partition in stream order, each once per claim.
//     Everything that could break this (a reconnect, a gap, a redelivery, an unconfirmed
//     settlement) has one remedy: the worker revokes the claim and re-claims the partition, so that
//     all unsettled events are redelivered in order, before anything new.
//   - An event that reaches neither of two claims in a row is read from the stream and delivered in
//     its place. A claim that is revoked repeatedly is retried with a growing delay and listed by
//     [Queue.GivenUp]: one event blocks neither its partition nor another event.
//   - An event leaves the stream only through [Claim.Settle], after a 2xx or after its dead letter
//     is stored, or through [Queue.PurgeUser].
//   - A dead letter leaves its stream only after its event has been stored again, or through
//     [Queue.Discard] or [Queue.PurgeUser]. None of these starts before it is recorded in the audit
//     trail. All of them may be interrupted at any point and run again.
//   - An event counts as a replay only if it is sealed with the pipeline's secret. Headers alone
//     prove nothing: any producer may set them.
//   - No call starts under a claim whose membership may have expired: [Claim.Valid] makes the final
//     check, and makes it locally.
//   - An operation that the server's permissions forbid ends within a second with a [*PermissionError]
//     that names the missing permission. A worker without a required permission stays out of the
//     fleet until it has it.
//   - The API blocks only where its documentation says so. Each partition has one goroutine that
//     calls the callbacks.
package queue
