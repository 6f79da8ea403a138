package userpilottest

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options are a Server's. The zero value is an API without limit and without faults
// that accepts any key.
type Options struct {
	// Key is the one that is accepted; "" accepts any, and each has its own limit.
	Key string
	// Limit is how many calls are accepted in each sliding Window for one key; what is
	// over it is answered 429. 0 is no limit.
	Limit int
	// Window is the limit's, and the one that [Stats] counts in. Default: a minute.
	Window time.Duration
	// RetryAfter is sent with a 429 if it is positive, in whole seconds rounded up.
	RetryAfter time.Duration
	// Latency is waited before each identify is looked at.
	Latency time.Duration
	// Faults chooses what goes wrong with a call; nil is nothing. See [Rules.Fault].
	// It is called by many goroutines at once.
	Faults func(Request) Fault
	// KeepCalls keeps every identify, its body too, for [Server.Calls]: for tests, as
	// it grows without bound.
	KeepCalls bool
}

// Request is an identify as fault choosers see it.
type Request struct {
	Number int // 1 for the first identify that had the right key
	Time   time.Time
	User   string // "" if the body has none that can be read
	Body   []byte // must not be changed
}

// Call is an identify and what became of it.
type Call struct {
	Request
	Status  int  // answered; 0 if the connection was cut instead
	Applied bool // whether the profile was changed
}

// Stats counts what a Server has seen.
type Stats struct {
	Calls       int         // identifies, those with a wrong key too
	ByStatus    map[int]int // of these; 0 is for connections that were cut
	Applied     int         // identifies that changed a profile
	Users       int
	Companies   int
	InWindow    int // calls in the window that ends now, of the busiest key
	MaxInWindow int // the most that were in any window of one key, refused ones too
	First, Last time.Time
}

// Server is the stand-in. It is safe for concurrent use.
type Server struct {
	options  Options
	listener listener

	requests atomic.Int64 // answers so far, for their ids

	mu      sync.Mutex
	faults  func(Request) Fault
	windows map[string]*window
	store   store
	calls   []Call
	number  int // of the last Request
	stats   Stats
}

// New returns a Server with no profiles. It listens nowhere until [Server.Start].
func New(o Options) *Server {
	if o.Window <= 0 {
		o.Window = time.Minute
	}
	return &Server{
		options: o,
		faults:  o.Faults,
		windows: make(map[string]*window),
		store:   newStore(),
		stats:   Stats{ByStatus: make(map[int]int)},
	}
}

// SetFaults replaces the chooser of faults; nil is no faults. Calls that have begun
// keep theirs.
func (s *Server) SetFaults(faults func(Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = faults
}

// Profile returns a copy of a user's profile.
func (s *Server) Profile(userID string) (Profile, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store.profile(userID)
}

// Company returns a copy of a company's properties, its id not among them.
func (s *Server) Company(id string) (map[string]json.RawMessage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store.company(id)
}

// Calls returns the calls so far, in the order in which they were answered; none
// without [Options.KeepCalls].
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.ByStatus = maps.Clone(s.stats.ByStatus)
	stats.Users, stats.Companies = len(s.store.users), len(s.store.companies)
	now := time.Now()
	for _, w := range s.windows {
		stats.InWindow = max(stats.InWindow, w.count(now))
		stats.MaxInWindow = max(stats.MaxInWindow, w.most)
	}
	return stats
}

var _ http.Handler = (*Server)(nil)
