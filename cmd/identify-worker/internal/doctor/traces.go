package doctor

import (
	"context"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/tracing"
)

// askCollector checks whether the collector takes spans, if the environment names one. It never
// fails: deliveries do not need traces.
func (d *doctor) askCollector(ctx context.Context, e *examination) {
	switch host, err := tracing.Probe(ctx, d.env.Getenv, d.env.Version); {
	case host == "" && err == nil:
	case host == "":
		e.warn("traces", "tracing disabled: %v", err)
	case err != nil:
		e.warn("traces", "%s does not accept them: %v", host, err)
	default:
		e.ok("traces", "%s accepts them", host)
	}
}
