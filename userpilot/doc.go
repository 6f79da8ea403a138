// Package userpilot knows what an identify is: which bodies Userpilot takes,
// how two of them merge, how one HTTP attempt is made and what a refusal says.
//
// Its laws:
//
//   - A body is never rewritten. What [Parse] took is what [Client.Identify]
//     sends, to the byte; only [Merge] makes new bodies, and it copies each name
//     and value as it was written, so that 1.0 stays 1.0.
//   - A merge is invisible: the profile that results is the same as one call for
//     each event. What cannot be proven so is not merged.
//   - One call of the client is one attempt. It retries nothing and follows
//     nothing; what a refusal means for the event, and when to try again, is
//     decided elsewhere.
//   - A connection is there before an attempt begins. Connections are made, kept
//     warm and replaced apart from the attempts, so that what an attempt may
//     spend, such as a token of a limit, is never spent on making one.
//   - An answer is hostile until it has been read: its size, its time and its
//     text are bounded.
//   - No error text holds a value of a user or the key.
//
// What is said here about Userpilot comes from its public documentation, unless
// a comment says otherwise. The package userpilottest is a stand-in for the API.
package userpilot
