package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"
)

// hangs is the API key whose calls are received, but never answered.
const hangs = "hangs"

// ordered is what an [order] has seen.
type ordered struct {
	InFlight int // users whose newest event has been received, in a call without an answer
	Answered int // users whose newest event has been received and answered
	Back     int // users who were taken back to an older event
}

// order is an API that watches whether users with large events are taken back. Their events carry
// the numbers 1 to 3. It first answers 429, so that a worker reads the backlog meanwhile and its
// first calls are merged.
type order struct {
	mu     sync.Mutex
	begun  time.Time
	newest map[string]int
	hang   map[string]bool
	good   map[string]bool
	back   map[string]bool
}

func newOrder() *order {
	return &order{newest: map[string]int{}, hang: map[string]bool{}, good: map[string]bool{}, back: map[string]bool{}}
}

const cooldown = 3 * time.Second

func (o *order) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var x struct {
		User     string `json:"user_id"`
		Metadata struct{ V int }
	}
	if err := json.NewDecoder(r.Body).Decode(&x); err != nil {
		return // the caller has gone
	}
	dying := strings.HasSuffix(r.Header.Get("Authorization"), hangs)
	switch {
	case o.coolingDown():
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(http.StatusTooManyRequests)
	case !strings.HasPrefix(x.User, "large-"):
		w.WriteHeader(http.StatusAccepted)
	default:
		o.note(x.User, x.Metadata.V, dying)
		if dying {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(http.StatusAccepted)
	}
}

// coolingDown reports whether the cooldown that the first call started still lasts.
func (o *order) coolingDown() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.begun.IsZero() {
		o.begun = time.Now()
	}
	return time.Since(o.begun) < cooldown
}

func (o *order) note(user string, v int, dying bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if v < o.newest[user] {
		o.back[user] = true
	}
	o.newest[user] = max(o.newest[user], v)
	switch {
	case dying:
		o.hang[user] = true // whichever event was last: the journal records it
	case v == 3:
		o.good[user] = true
	}
}

func (o *order) seen() ordered {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := ordered{Answered: len(o.good), Back: len(o.back)}
	for user := range o.hang {
		if o.newest[user] == 3 {
			s.InFlight++
		}
	}
	return s
}
