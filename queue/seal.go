package queue

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// sealKey is the key of the bucket that holds the pipeline's secret. Workers can read it, and people who
// look at dead letters, but no producers. So what is sealed with it comes from a replay or an export, and
// headers that a producer has written mean nothing. Where it is lost with the bucket, the members' keys
// are, too: all join anew, and so read it again.
const sealKey = "seal"

// seal is the pipeline's secret. It must reach no log and no error.
type seal []byte

const sealBytes = 32

// readSeal reads the stored form; nil if it is damaged.
func readSeal(text []byte) seal {
	s, err := base64.RawURLEncoding.DecodeString(string(text))
	if err != nil || len(s) != sealBytes {
		return nil
	}
	return s
}

// mark is what only who knows the seal can make of some parts. They hold no line breaks, but for the last.
func (s seal) mark(parts ...string) string {
	m := hmac.New(sha256.New, s)
	m.Write([]byte(strings.Join(parts, "\n")))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// mark seals a past, and of a replay the event with it: nobody can pass another event off as that
// letter's. The event of an export is left open, as people correct it by hand.
func (p *Past) mark(s seal, body []byte) string {
	untracked := strconv.FormatBool(p.Untracked)
	if p.Letter.IsZero() {
		return s.mark("export", p.Origin.String(), untracked)
	}
	return s.mark("replay", p.Letter.String(), strconv.FormatUint(p.ID, 10), p.Origin.String(), strconv.Itoa(p.Replays),
		p.Run, strconv.FormatBool(p.Forced), untracked, string(body))
}

// replayID is the message id of a letter's replay, for whoever replays it. A producer who could guess
// it would have the server take the replay for a copy of an event of the producer's own.
func (s seal) replayID(letter Age) string { return "replay." + s.mark("id", letter.String()) }

// readSealed is the past of an event, if it is sealed: nil for all others, whatever their headers say.
func readSealed(h nats.Header, body []byte, s seal) *Past {
	if len(h) == 0 || len(h[headerSeal]) == 0 || len(s) == 0 {
		return nil
	}
	p := readPast(h)
	if p == nil || !hmac.Equal([]byte(p.sealed), []byte(p.mark(s, body))) {
		return nil
	}
	if p.Letter.IsZero() { // nothing else of an export is sealed
		p.ID, p.Run, p.Forced = 0, "", false
	}
	return p
}

// seal is the secret as this process has read it last; empty before.
func (q *Queue) seal() seal {
	if s := q.sealed.Load(); s != nil {
		return *s
	}
	return nil
}

// readSeal reads the secret, and makes one where there is none: the first worker does. One that is
// damaged it makes anew, too. A secret that this process knows comes back.
func (q *Queue) readSeal(ctx context.Context) (s seal, err error) {
	err = retry(ctx, electionTimeout, func(ctx context.Context) error {
		var revision uint64
		if s, revision, err = q.storedSeal(ctx); err != nil || s != nil {
			return err
		}
		if s, err = q.storeSeal(ctx, revision); isWrongRevision(err) {
			return errTryAgain // somebody else was faster
		}
		return err
	})
	if err != nil {
		return nil, stopped(ctx, fmt.Errorf("read what replays are sealed with: %w", err))
	}
	q.sealed.Store(&s)
	return s, nil
}

// storedSeal reads the secret; nil if there is none, or not a whole one.
func (q *Queue) storedSeal(ctx context.Context) (s seal, revision uint64, err error) {
	m, err := q.readLeader(ctx, "KV_"+q.topology.Bucket(), lastBySubject{q.topology.keySubject(sealKey)})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return readSeal(m.Data), m.Sequence, nil
}

func (q *Queue) storeSeal(ctx context.Context, revision uint64) (seal, error) {
	s := q.seal()
	if s == nil {
		s = make([]byte, sealBytes)
		_, _ = rand.Read(s) // it never fails
	}
	m := &nats.Msg{Subject: q.topology.keySubject(sealKey), Data: []byte(base64.RawURLEncoding.EncodeToString(s))}
	_, err := q.store(ctx, q.topology.toKey(sealKey), m, jetstream.WithExpectLastSequencePerSubject(revision))
	if asDenied(err) != nil {
		err = fmt.Errorf("the bucket %s has no whole key %q: start a worker, or restart one, which makes it", q.topology.Bucket(), sealKey)
	}
	return s, err
}
