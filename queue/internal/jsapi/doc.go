// Package jsapi makes the requests to JetStream that package queue and the packages built on it
// share: direct and leader reads, scans, pulls, deletions and key-value writes, each with a check
// of the server's permissions, and the server's clock. It does not know what the messages mean.
//
// Its invariants:
//
//   - A request that the server's permissions forbid ends within a second with a [*PermissionError]
//     that names the missing permission, and no user. The server does not answer such a request:
//     [Conn.WithPermissionCheck] probes the permissions as soon as an answer is late.
//   - A probe has no effect: no stream stores its message, and no API executes it.
//   - A read from a stream's leader ([Conn.ReadSequence], [Conn.ReadNext], [Conn.ReadLast],
//     [Conn.ReadKey], and the bucket that [Conn.OpenBucket] returns) is current. A direct get
//     ([Conn.Direct], [Conn.Scan], [Conn.Count], [Conn.ReadKeys]) may be answered by a replica of
//     the stream that lags.
//   - Only [Conn.Remove], [Conn.RemoveBelow], [Conn.Count] and [Conn.Scan] repeat a request that
//     was not answered. Other callers use [Retry] where a repeat does no harm.
//   - A publisher cannot forge what the server says about a message: [Conn.Direct] keeps only the
//     server's own value of each of its headers, and [Pull] recognizes an event by its reply
//     subject.
//   - [Clock] bounds the server's time, so that no replica's own clock decides what the replicas do
//     together.
package jsapi
