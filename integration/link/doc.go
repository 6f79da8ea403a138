// Package link is the network between a program under test and one of its peers: it can be far away,
// cut, refusing or half-open.
//
// Its laws:
//
//   - It passes bytes on and does not interpret them.
//   - It keeps the order of a connection's bytes, even while the distance changes.
//   - It never delivers late what it has dropped, just as a half-open connection does not.
//   - A distance is a lower bound: a busy machine may delay everything further.
package link
