// Package deadletter keeps what a pipeline knows of events that could not be delivered: the dead
// letters ([Letter]), the version records of their users ([VersionRecord]), and the outcomes of
// replays ([ReplayOutcome]). A worker writes them through a [Store]; package inspector reads them
// and replays the letters.
//
// Its invariants:
//
//   - A dead letter is stored once, however often [Store.Add] is called for its event. The event
//     may be settled only after [Store.Add] has returned nil.
//   - A user's version record exists before the user's first dead letter does. From then on, what
//     an event sets is recorded ([Store.RecordVersions]) before the event leaves the work stream,
//     until no letter needs the record any more. So a replay can be reduced to the properties that
//     no newer event has set.
//   - The same record is kept for a user whose live event was called while older backfill may wait
//     ([Store.RecordVersions]), until no backfill waits ([Store.EndBackfill]). So such backfill sets
//     only what is left.
//   - An event keeps the [Position] of its first publication, however often it dies and is
//     replayed.
//   - An event counts as a replay only if it is sealed with the pipeline's secret ([ReadSealed]).
//     Headers alone prove nothing: any producer may set them.
//   - A replayed letter has one outcome, which a worker stores before the replay leaves the work
//     stream. An existing outcome is kept, and a second copy of the replay is not delivered.
//   - The secret ([Seal]) and a letter's error, which may quote user data, reach no log.
//   - Anyone with the permission may have written what is read here. An unreadable part counts as
//     missing, and text is one line of printable characters. The exception is [Death.User]: use
//     [Printable] to show it.
//   - The rules of [Pattern] and the stored forms are contracts: replicas and commands of other
//     versions rely on them.
package deadletter
