package main

import (
	"context"
	"log/slog"
)

// askCollector looks whether spans would arrive, where there is somewhere for them to go. Nothing here
// fails: deliveries do not need it.
func (d *doctor) askCollector(ctx context.Context, e *examination) {
	o, err := readOTLP(d.env)
	switch {
	case err != nil:
		e.warn("traces", "there are none: %v", err)
		return
	case o == nil:
		return
	}
	c := newCollector(o, slog.New(slog.DiscardHandler))
	defer c.close()
	if _, _, err := c.post(ctx, nil); err != nil { // no spans, in protobuf
		e.warn("traces", "%s does not take them: %v", o.url.Host, err)
		return
	}
	e.ok("traces", "%s takes them", o.url.Host)
}
