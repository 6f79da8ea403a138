package queue

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// codeInvalidJSON is JetStream's refusal of a request that it cannot read.
const codeInvalidJSON = 10025

// Strict reports whether the servers that lead the pipeline's streams refuse requests with members that
// they do not know. With "strict: false" in its configuration a server does not: it takes an
// acknowledgement for a request to purge a stream, where who publishes names that subject for the answer.
// Strict blocks for a round trip for each stream. It changes nothing; each try is a warning in that
// server's log.
func (q *Queue) Strict(ctx context.Context) (bool, error) {
	strict, request := true, map[string]bool{unknownName: true}
	for _, stream := range q.topology.streams(q.nc.MaxPayload()) {
		var answer struct {
			Error *jetstream.APIError `json:"error"`
		}
		err := q.request(ctx, "$JS.API.STREAM.INFO."+stream.Name, request, &answer)
		switch {
		case err == nil && answer.Error == nil:
			strict = false
		case err == nil && answer.Error.ErrorCode != codeInvalidJSON:
			err = answer.Error
		}
		if err != nil {
			return false, fmt.Errorf("try how strict the server of stream %s is: %w", stream.Name, err)
		}
	}
	return strict, nil
}
