package main

import (
	"strings"

	"github.com/identify-worker/identify-worker/integration/link"
)

// ways are the networks between a site's consumers and its two peers.
type ways struct{ nats, api *link.Proxy }

// recede moves NATS and the API away from consumers that start from now on, and makes these call
// over TLS. If both distances are zero, nothing changes.
func (s *site) recede(nats, api link.Distance) (err error) {
	if nats == (link.Distance{}) && api == (link.Distance{}) {
		return nil
	}
	s.ways = &ways{}
	if s.ways.nats, err = link.Listen("127.0.0.1:0", strings.TrimPrefix(s.natsURL, "nats://")); err != nil {
		return err
	}
	if s.ways.api, err = link.Listen("127.0.0.1:0", strings.TrimPrefix(s.secureURL, "https://")); err != nil {
		return err
	}
	s.ways.nats.Move(nats)
	s.ways.api.Move(api)
	return nil
}

// close closes those networks that are open.
func (w *ways) close() {
	if w == nil {
		return
	}
	for _, p := range []*link.Proxy{w.nats, w.api} {
		if p != nil {
			p.Close()
		}
	}
}
