// Package userpilot implements Userpilot's identify: which bodies Userpilot
// accepts, how two of them merge, how to make one HTTP attempt and what a refusal
// says.
//
// Its laws:
//
//   - A body is never rewritten. [Client.Identify] sends what [Parse] accepted,
//     byte for byte; only [Merge] and [Event.Without] make new bodies, and they
//     copy each name and value as it was written, so that 1.0 stays 1.0.
//   - A merge is invisible: the resulting profile is the same as after one call
//     for each event. Events for which that cannot be proven are not merged.
//   - One call of the client is one attempt. The client retries nothing and follows
//     no redirects; the caller decides what a refusal means for the event and when
//     to retry.
//   - A connection exists before an attempt begins. The client makes, keeps and
//     replaces connections independently of attempts, so that an attempt never
//     wastes what it spends, such as a rate-limit token, on making one.
//   - An answer is hostile until it has been read: its size, its time and its
//     text are bounded.
//   - No error text contains a user's value or the key. What a server sends unasked,
//     net/http prints with the standard logger, which a program must redirect: there
//     is no other way.
//
// Statements about Userpilot come from its public documentation, unless a comment
// says otherwise. The package userpilottest is a stand-in for the API.
package userpilot
