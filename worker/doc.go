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
//   - A failing lane backs off and does not delay the others. The worker never naks an event:
//     redelivery would lose the order.
//   - An event becomes a dead letter only if Userpilot refuses that event alone, or if it fails
//     while other users' calls succeed. An outage, a 429 or a wrong key never makes a dead letter.
//   - Memory for waiting events is bounded in bytes.
//
// One mutex guards all state; it is never held across anything that blocks. Logging does not block:
// see package asynclog. The comment of a method of Worker says "w.mu must be held" if its caller
// must hold the mutex; the comment of another type says that the mutex guards it, for all of its
// methods.
package worker
