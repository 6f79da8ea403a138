package inspector

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// codeInvalidJSON is JetStream's error for a request that it cannot decode.
const codeInvalidJSON = 10025

// Strict reports whether the servers that lead the pipeline's streams refuse requests with unknown
// fields. A server with "strict: false" in its configuration does not: it takes an acknowledgement
// for a request to purge a stream, if a publisher names that subject as the reply subject. Strict
// blocks for one round trip per stream. It changes nothing, but each probe is a warning in the
// server's log.
func (i *Inspector) Strict(ctx context.Context) (bool, error) {
	strict, request := true, map[string]bool{jsapi.UnknownName: true}
	for _, stream := range i.topology.StreamConfigs(i.api.NATS.MaxPayload()) {
		var answer struct {
			Error *jetstream.APIError `json:"error"`
		}
		err := i.api.Request(ctx, "$JS.API.STREAM.INFO."+stream.Name, request, &answer)
		switch {
		case err == nil && answer.Error == nil:
			strict = false
		case err == nil && answer.Error.ErrorCode != codeInvalidJSON:
			err = answer.Error
		}
		if err != nil {
			return false, fmt.Errorf("probe the strictness of the server of stream %s: %w", stream.Name, err)
		}
	}
	return strict, nil
}
