package deadletter

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// SealKey is the key of the bucket that holds the pipeline's secret. Workers and people who inspect
// dead letters can read it, but producers cannot. So a sealed event comes from a replay or an
// export, and headers written by a producer have no effect. If the bucket and with it the secret is
// lost, so are the members' keys: all workers rejoin, and read the secret again.
const SealKey = "seal"

// SealBytes is the length of the secret.
const SealBytes = 32

// Seal is the pipeline's secret. It must not reach a log or an error. An empty Seal seals nothing:
// [ReadSealed] accepts no event by it.
type Seal []byte

// decodeSeal decodes the stored form; nil if it is damaged.
func decodeSeal(text []byte) Seal {
	s, err := base64.RawURLEncoding.DecodeString(string(text))
	if err != nil || len(s) != SealBytes {
		return nil
	}
	return s
}

// Mark is the MAC of some parts. Only the last part may contain line breaks.
func (s Seal) Mark(parts ...string) string {
	m := hmac.New(sha256.New, s)
	m.Write([]byte(strings.Join(parts, "\n")))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// Mark is the mark that seals the metadata of a replay together with the event, so that no other
// event can pass as that letter's. The body of an exported event is not sealed, since people
// correct it by hand.
func (p *ReplayInfo) Mark(s Seal, body []byte) string {
	untracked := strconv.FormatBool(p.Untracked)
	if p.Letter.IsZero() {
		return s.Mark("export", p.Origin.String(), untracked)
	}
	return s.Mark("replay", p.Letter.String(), strconv.FormatUint(p.ID, 10), p.Origin.String(), strconv.Itoa(p.Replays),
		p.Run, strconv.FormatBool(p.Forced), untracked, string(body))
}

// Pseudonym is a short name for a user, always the same. Without the secret, nobody can find out
// whose it is by trying ids; some users may share one.
func (s Seal) Pseudonym(user string) string {
	return s.short(3, "user", user)
}

// short is a mark of so many bytes, in hexadecimal.
func (s Seal) short(bytes int, parts ...string) string {
	sum := sha256.Sum256([]byte(s.Mark(parts...)))
	return hex.EncodeToString(sum[:bytes])
}

// ReplayID is the message id of a letter's replay, the same for every replayer. If a producer could
// guess it, the server would take the replay for a duplicate of the producer's own event.
func (s Seal) ReplayID(letter Position) string { return "replay." + s.Mark("id", letter.String()) }

// ReadSealed reads an event's replay metadata if the seal is valid; otherwise nil, whatever its
// headers.
func ReadSealed(h nats.Header, body []byte, s Seal) *ReplayInfo {
	if len(h) == 0 || len(h[HeaderSeal]) == 0 || len(s) == 0 {
		return nil
	}
	p := readReplayInfo(h)
	if p == nil || !hmac.Equal([]byte(p.Sealed), []byte(p.Mark(s, body))) {
		return nil
	}
	if p.Letter.IsZero() { // an export seals nothing else
		p.ID, p.Run, p.Forced = 0, "", false
	}
	return p
}

// CachedSeal is the secret as this process last read it; empty before. It does not block.
func (s *Store) CachedSeal() Seal {
	if key := s.sealed.Load(); key != nil {
		return *key
	}
	return nil
}

// ReadSeal reads the pipeline's secret, by which [Store.ReadReplayInfo] recognizes replays. If it
// is missing or damaged, ReadSeal creates it, as the first worker does; a secret that this process
// has read before is restored. A worker must call it whenever it joins the fleet, since the secret
// may have been lost together with the members' keys. It blocks for a round trip.
func (s *Store) ReadSeal(ctx context.Context) error {
	_, err := s.LoadSeal(ctx)
	return err
}

// LoadSeal is [Store.ReadSeal], and returns the secret.
func (s *Store) LoadSeal(ctx context.Context) (key Seal, err error) {
	err = jsapi.Retry(ctx, jsapi.ElectionTimeout, func(ctx context.Context) error {
		var revision uint64
		if key, revision, err = s.StoredSeal(ctx); err != nil || key != nil {
			return err
		}
		if key, err = s.storeSeal(ctx, revision); jsapi.IsWrongRevision(err) {
			return jsapi.ErrTryAgain // another worker was faster
		}
		return err
	})
	if err != nil {
		return nil, jsapi.Stopped(ctx, fmt.Errorf("read the seal of replays: %w", err))
	}
	s.sealed.Store(&key)
	return key, nil
}

// StoredSeal reads the secret from NATS; nil if it is missing or damaged, which it does not repair.
// revision is that of its key. It blocks for a round trip.
func (s *Store) StoredSeal(ctx context.Context) (key Seal, revision uint64, err error) {
	m, err := s.api.ReadLast(ctx, s.api.BucketStream(), s.api.KeySubject(SealKey))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return decodeSeal(m.Data), m.Sequence, nil
}

func (s *Store) storeSeal(ctx context.Context, revision uint64) (Seal, error) {
	key := s.CachedSeal()
	if key == nil {
		key = make([]byte, SealBytes)
		_, _ = rand.Read(key) // it never fails
	}
	m := &nats.Msg{Subject: s.api.KeySubject(SealKey), Data: []byte(base64.RawURLEncoding.EncodeToString(key))}
	_, err := s.api.StoreKey(ctx, s.api.ToWriteKey(SealKey), m, jetstream.WithExpectLastSequencePerSubject(revision))
	if jsapi.AsPermissionError(err) != nil {
		err = fmt.Errorf("the bucket %s has no valid key %q: start or restart a worker, which creates it", s.topology.Bucket(), SealKey)
	}
	return key, err
}
