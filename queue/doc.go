// Package queue is everything that touches NATS: the names and sizes of what
// lives there, the publisher, membership, claims on partitions, the rate
// ledger, settlement and dead letters. Types of nats.go's jetstream package
// never leave it.
//
// Its laws:
//
//   - A partition is claimed by holding the one consumer on its subject; the
//     server refuses a second one. There is no lock and no leader of our own.
//   - Events of a partition reach the [Handler] in the order of the stream, each
//     once per claim. Whatever could break that (a reconnect, a gap, a second
//     delivery, an unconfirmed settlement) has one answer: the claim is given up
//     and the partition claimed anew, so that all that is not settled arrives
//     again, in order, before anything new.
//   - What does not come to two claims in a row is read from the stream and handed over in its
//     place. A claim that is given up again and again is made anew at a growing delay, and is named
//     by [Queue.GivenUp]: one event stops neither its partition nor another.
//   - An event leaves the stream only by [Claim.Settle], after a 2xx or after its
//     dead letter has been stored, or by [Queue.PurgeUser].
//   - A dead letter leaves its stream only after its event has been stored again, or by a
//     [Queue.Discard] or [Queue.PurgeUser]. Nothing of this begins before the audit trail
//     tells of it, and all of it may be cut short anywhere and be run again.
//   - An event is a replay only if it is sealed with the pipeline's secret. Headers prove nothing: they
//     may come from any producer.
//   - Nothing is called for a claim whose membership could have lapsed:
//     [Claim.Certain] is the last word, and it asks no one.
//   - What the server's permissions forbid ends with a [*DeniedError] that names the right, within a
//     second. A worker that lacks a right stays out of the fleet until it has it.
//   - The API blocks only where its documentation says so. Callbacks
//     come from one goroutine per partition.
package queue
