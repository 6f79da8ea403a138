// Package fleet shares the partitions of a pipeline among its replicas. [Fleet.Work] joins the
// fleet, claims this replica's share, and passes each partition's events to a [Handler]; a [Claim]
// is the right to work one partition, and [Claim.Settle] removes delivered events. [Read] reads the
// state of a fleet from outside.
//
// Its invariants:
//
//   - A replica claims a partition by holding the only consumer on its subject; the server refuses
//     a second one. There is no lock and no leader of our own.
//   - The [Handler] receives the events of a partition in stream order, each once per claim.
//     Everything that could break this (a reconnect, a gap, a redelivery, an unconfirmed
//     settlement) has one remedy: the replica revokes the claim and re-claims the partition, so
//     that all unsettled events are redelivered in order, before anything new.
//   - An event that reaches neither of two claims in a row is read from the stream and delivered in
//     its place. A claim that is revoked repeatedly is retried with a growing delay and listed by
//     [Fleet.GivenUp]: one event blocks neither its partition nor another event.
//   - An event leaves the stream only through [Claim.Settle], or when an operator erases its user.
//     A worker settles an event after a 2xx, after its dead letter is stored, or, without a call,
//     if it is a replay that has its outcome already or that newer events have superseded.
//     [Claim.Settle] removes a user's events oldest first, and reports only those that are
//     certainly gone.
//   - While much backfill waits, a claim is split ([Claim.IsSplit]): two consumers deliver live
//     events and backfill apart. Backfill is handed over only after all older live events, and,
//     after a takeover, after all that the previous holder may have called. So only one thing can
//     be out of order: a live event may be called before older backfill of its user. Its holder
//     records such a call before it is made ([Claim.BeginMerged]), and what it has set before it
//     is settled.
//   - A call for several events is recorded before it is made ([Claim.BeginMerged]). If the replica
//     dies during the call, the next holder repeats it whole ([Claim.ResendThrough]): fewer of its
//     events would take the user back to an older state.
//   - No call starts under a claim whose membership may have expired: [Claim.Valid] makes the final
//     check, and makes it locally.
//   - A replica without a required permission ([MemberConfig.Permissions]) stays out of the fleet
//     until it has it; [Fleet.MissingPermission] names it meanwhile.
//   - A member is alive while its key is young, not while the key exists: after a crash, a server
//     was seen to keep an expired key.
//   - Shares move only after the claims on them have ended: a replica that releases a partition
//     finishes its calls first ([Handler.Revoke]).
//   - Where the server allows fewer consumers than there are partitions, the eldest member holds all
//     partitions through one consumer, and the others stand by.
//   - A function blocks only where its comment says so. For each partition, one goroutine calls the
//     [Handler].
package fleet
