// Package userpilottest is a stand-in for Userpilot's API: it keeps profiles as the
// API is documented to, enforces a key and a rate, and fails on demand.
//
// Its laws:
//
//   - It shares no code with the client that it tests: no test could find a mistake
//     that both make in the same way.
//   - Where Userpilot's documentation is silent it takes the stricter reading: every
//     call counts towards the limit, even a refused one; two calls exactly a window
//     apart are in one window; nested values and duplicate names are refused.
//   - It behaves the same over a socket ([Server.Start], or as an [http.Handler]) and
//     without one ([Server.Transport]), where it uses the fake time of a
//     testing/synctest bubble.
//   - It does not keep its calls unless [Options.KeepCalls] is set, so it can run for
//     days.
package userpilottest
