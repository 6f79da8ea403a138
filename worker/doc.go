// Package worker is the policy between the queue and Userpilot: which user is next,
// whether a call may be made now, what its answer means and what follows.
//
// Its laws:
//
//   - Each user with waiting events has a lane. One call of a lane is in flight at a time, and
//     the next begins only when the events of the last have certainly left the stream.
//   - One goroutine dispatches: a ready lane, the gate, a free sender, a token, the gate
//     again, and only then the lane is popped, so that its call holds all that has
//     arrived by then.
//   - Every attempt takes a token. What is not called takes none.
//   - A lane that fails backs off and stands in nobody's way. Nothing is handed back to the
//     stream for later: that would lose the order.
//   - An event dies by Userpilot's refusal of it alone, or by failures while other
//     users' calls succeed. An outage, a 429 or a wrong key kills nothing.
//   - What waits in memory is bounded in bytes.
//
// State is guarded by one mutex, which is never held across anything that blocks. Logging does not:
// see package asynclog.
package worker
