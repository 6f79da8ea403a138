package inspector

import (
	"context"
	"fmt"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// supersededAtOnce bounds the users per request: the server accepts 1,024.
const supersededAtOnce = 500

// Supersessions compares each letter with its user's version record. It blocks for one round trip
// per few hundred letters, and needs permission to publish to
// $JS.API.DIRECT.GET.KV_<bucket>_versions. In a cluster its answer can lag a little; a replay is
// exact.
func (i *Inspector) Supersessions(ctx context.Context, letters []*deadletter.Letter) ([]deadletter.Supersession, error) {
	found := make([]deadletter.Supersession, len(letters))
	for at := 0; at < len(letters); at += supersededAtOnce {
		some := letters[at:min(len(letters), at+supersededAtOnce)]
		records, err := i.letters.VersionsOf(ctx, some)
		if err != nil {
			return nil, fmt.Errorf("read version records: %w", err)
		}
		for j, l := range some {
			if n := records[deadletter.VersionSubject(i.topology, l.UserID())]; l.UserID() != "" && n != nil {
				found[at+j] = n.Supersession(l)
			}
		}
	}
	return found, nil
}
