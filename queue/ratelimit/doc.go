// Package ratelimit keeps one exact limit of calls for all replicas of a fleet. [Rate] is the
// limit, [Ledger] gives out the slots in which calls may start, [Peers] is what the ledger knows of
// the other replicas, and [Cooldown] stops the calls of all of them after a 429. For a limit of one
// process, without NATS, see [Rate.Limiter].
//
// Its invariants:
//
//   - In any window of length [Rate.Window], the replicas together start at most [Rate.Calls]
//     calls, whichever of them joins, dies or restarts. The comment of [Ledger] names the
//     exceptions.
//   - No two replicas have the same slot. A replica reserves slots by moving a key in NATS forward
//     by compare-and-set; there is no lock and no leader. Without a connection to NATS there are no
//     slots.
//   - Each attempt to call takes a [Slot], and does not start once [Slot.Expired] reports true. A
//     slot that was taken and not used is lost.
//   - Live calls go first: while others have backfill, a replica reserves the next slot of a shard of
//     theirs for a live call. The shard stays its owner's, who reads it again when its own reservation
//     of that slot fails. Slots for backfill are therefore reserved late, and the shards' slots are
//     spread evenly.
//   - While replicas have different rates, all of them obey every rate.
//   - A cooldown only becomes longer. It ends by itself, after [Cooldown.Start]'s 15 minutes at
//     most.
//   - The stored forms do not change their meaning: replicas of other versions read them.
//   - Only [Ledger.Take], [Ledger.Close] and the function that [Cooldown.Start] returns block.
package ratelimit
