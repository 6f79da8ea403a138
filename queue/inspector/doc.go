// Package inspector does what operators do with a pipeline: it reads the state of the streams and
// of the fleet ([Inspector.Status], [Inspector.InspectStreams]), and reads, groups, replays,
// discards and erases dead letters. It takes no part in the fleet.
//
// Its invariants:
//
//   - A dead letter leaves its stream only after its event has been stored again
//     ([Inspector.Replay]), or through [Inspector.Discard] or [Inspector.PurgeUser], or when the
//     stream's limits drop it. None of these operations starts before it is recorded in the audit
//     trail. All of them may be interrupted at any point and run again.
//   - A letter is replayed once in effect, even if several commands replay it at the same time: all
//     copies have the letter's own message id and seal, and a worker ignores a copy of a letter
//     that has its outcome.
//   - Besides workers, only [Inspector.PurgeUser] removes events from the work stream.
//   - Everything else changes nothing, except that [Inspector.ExportHeader] creates the pipeline's
//     secret if it is missing. [Inspector.Select] only shows what a replay would do.
//   - The audit trail's record of an operation outlives a purge, so it names users only by hashes.
//   - Memory is bounded, however many letters there are: methods hold few of them at a time, and
//     count groups and users up to a bound. Only a [Selection] grows, by some bytes per letter.
//   - A method that needs more than a worker's permissions names them. A missing one ends it within
//     a second with a [*queue.PermissionError].
package inspector
