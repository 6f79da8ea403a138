// Package queuetest runs tests against a real JetStream server in fake time: hours of retries,
// leases and clocks take milliseconds, and no fake server can be wrong. See [testing/synctest].
//
// [Run] starts a [Server] in a bubble. [Sim] adds a log, waits that end, and connections with
// faults: a [Line] delays, cuts or loses data, a [Distance] puts a client far away, and [Users]
// have permissions.
//
// Its invariants:
//
//   - The TestMain of a package that calls [Run] is [Main].
//   - Time is fake: a test waits for conditions ([Sim.Await], [Receive]), and each wait ends.
//   - A test in a bubble does not call nats.go's Flush, RTT, NextMsg or Request, which take their
//     timers from a pool of the whole process: a timer of another bubble is fatal. Their variants
//     with a context are safe.
//   - Only tests import this package. The build tag noembed omits everything but this comment.
package queuetest
