// Package worker is the policy between the queue and Userpilot: it decides which user is next,
// whether a call may be made now, what the answer means and what follows from it.
//
// Its laws:
//
//   - Each user with waiting events has a lane. A lane has one call in flight at a time, and the
//     next call begins only after the events of the last one have left the stream.
//   - One goroutine dispatches: it waits for a ready lane, the gate and a free sender, checks the
//     gate again and only then pops the lane, so that the call holds everything that has arrived
//     by then. The token comes last: the sender takes it when the call is ready to be sent.
//   - Every attempt takes a token. A call that is not made takes none.
//   - Lanes with live events go first, and of two calls that wait for a token, the live one. A lane
//     keeps its events in order of arrival; one that is older than an event before it is compared
//     with the version record before it is called.
//   - A failing lane backs off and does not delay the others: while lanes wait that are not failing,
//     it gets every fourth turn, and a call that has waited a second for its answer leaves its sender
//     to the next. The worker never naks an event: redelivery would lose the order.
//   - An event becomes a dead letter only if Userpilot itself refuses that event alone, or if its
//     calls fail or are refused while other users' calls succeed. An outage, a 429, a wrong key or a
//     proxy that answers never makes a dead letter.
//   - Memory for waiting events is bounded in bytes.
//
// What an answer means:
//
//	answer                                             verdict
//	2xx that does not begin as HTML                    delivered
//	400, 413, 415, 422 with JSON: Userpilot's own      rejected: dead, and a merged call is halved
//	  refusal of a body                                until the guilty event is alone
//	the same without JSON, every other 4xx, 3xx,       refused. With evidence it is that event's: an
//	  2xx that begins as HTML                          attempt counts, a merged call is halved, the
//	                                                   last attempt is dead (rejected). Without, three
//	                                                   users in a row, or the first 401 or page, are
//	                                                   a hold
//	402, 407, 421, 426, 451, 495 to 499, 511           refused, but never the event's: nothing counts
//	429                                                throttled: the fleet cools down; the lane
//	                                                   alone, if it alone is throttled again and again
//	408, 423, 425, 5xx, no answer                      retry. With evidence an attempt counts, and the
//	                                                   last one is dead (retries_exhausted). Without,
//	                                                   three users in a row are an outage
//
// A 429 is about the key, so the fleet cools down after the first three for one user, though others
// succeed in between: by chance the same user may be hit twice, when others use the key up.
//
// Evidence is another user's success: for a refusal, within the last minute; for a failure, in the
// second half of the time that the call took; to kill, by a call that began after the lane's last
// failure. A hold and an outage stop all calls but probes, count
// nothing, and end with one success. testdata/verdicts.txt tells it by example.
//
// One mutex guards all state; it is never held across anything that blocks. Logging does not block:
// see package asynclog. The comment of a method of Worker says "w.mu must be held" if its caller
// must hold the mutex; the comment of another type says that the mutex guards it, for all of its
// methods.
package worker
