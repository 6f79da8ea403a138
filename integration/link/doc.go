// Package link is the network between a program under test and one of its peers: as far away as
// one likes, cut, refused or half-open.
//
// Its laws:
//
//   - It passes on bytes and knows nothing of what they mean.
//   - The order of a connection's bytes is kept, whatever the distance becomes meanwhile.
//   - What it drops it never delivers late, as a connection that is half-open does not either.
//   - A distance is a lower bound: a busy machine may make everything later.
package link
