// Package integration tests the product as it is run: the command and a NATS server, or three of
// them, each in a container of its own, killed and restarted under load, and judged from outside by
// what Userpilot received and what is in the streams.
//
// Its laws:
//
//   - Tests use only what a user of the product has: the binary with its flags, package queue to
//     publish, NATS to look. One exception is a binary with a planted bug, which proves that its
//     test would notice. The stand-in API runs inside the test, so that its record of calls needs
//     no protocol.
//   - No image is pulled: both images are built from scratch, the worker's by the Dockerfile of the
//     release, the server's from the module that go.mod pins.
//   - Every test has a network, servers and a stand-in of its own, and waits for conditions,
//     never for time to pass, unless a length of time is itself the fault.
//   - Without Docker the tests are skipped; with REQUIRE_DOCKER=1 they fail.
package integration
