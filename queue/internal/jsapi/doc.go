// Package jsapi makes the requests to JetStream that the packages below queue share: direct and
// leader reads, scans, deletions and key-value writes, each with a check of the server's permissions
// and with the server's clock. Nothing in it knows what the messages mean.
package jsapi
