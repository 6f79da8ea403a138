// Package terminaltest makes terminals for tests, on Linux.
package terminaltest
