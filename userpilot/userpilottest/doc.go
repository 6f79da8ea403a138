// Package userpilottest is a stand-in for Userpilot's API: it keeps profiles as the
// API is documented to, enforces a key and a rate, and fails on demand.
//
// Its laws:
//
//   - It shares no code with the client it is there to test: what both would get
//     wrong in the same way, no test could find.
//   - Where Userpilot's documentation is silent it takes the stricter reading: every
//     call counts for the limit, a refused one too; two calls exactly a window apart
//     are in one window; nested values and repeated names are refused.
//   - It is the same over a socket ([Server.Start], or as an [http.Handler]) and
//     without one ([Server.Transport]), where it lives on the fake time of a
//     testing/synctest bubble.
//   - It forgets its calls unless it is told to keep them, so it can run for days.
package userpilottest
