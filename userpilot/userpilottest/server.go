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

// Options configure a [Server]. The zero value is an API without limit and without
// faults that accepts any key.
type Options struct {
	// Key is the accepted key; "" accepts any key, and each key has its own limit.
	Key string
	// Limit is how many calls the server accepts per key in each sliding Window; it
	// answers further calls with 429. 0 is no limit.
	Limit int
	// Window is the window of Limit and of [Stats]. Default: a minute.
	Window time.Duration
	// RetryAfter is sent with a 429 if it is positive, in whole seconds rounded up.
	RetryAfter time.Duration
	// Latency delays the handling of each identify.
	Latency time.Duration
	// Faults returns the fault for a call; nil means no faults. See [Rules.Fault]. It
	// must be safe for concurrent use.
	Faults func(Request) Fault
	// KeepCalls keeps every identify, including its body, for [Server.Calls]. It is for
	// tests: memory grows without bound.
	KeepCalls bool
}

// Request is an identify as [Options.Faults] sees it.
type Request struct {
	Number int // 1 for the first identify with the right key
	Time   time.Time
	User   string // "" if the body has no readable user
	Body   []byte // must not be changed
}

// Call is an identify and its result.
type Call struct {
	Request
	Status  int  // of the answer; 0 if the connection was cut instead
	Applied bool // whether the call changed the profile
}

// Stats counts the calls to a Server.
type Stats struct {
	Calls       int         // identifies, including those with a wrong key
	ByStatus    map[int]int // identifies by status; 0 means that the connection was cut
	Applied     int         // identifies that changed a profile
	Users       int
	Companies   int
	InWindow    int // calls of the busiest key in the window that ends now
	MaxInWindow int // maximum number of calls of one key in any window, including refused ones
	First, Last time.Time
}

// Server is the stand-in. It is safe for concurrent use.
type Server struct {
	options  Options
	listener listener

	requests atomic.Int64 // number of answers, for their ids

	mu      sync.Mutex
	faults  func(Request) Fault
	windows map[string]*Window
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
		windows: make(map[string]*Window),
		store:   newStore(),
		stats:   Stats{ByStatus: make(map[int]int)},
	}
}

// SetFaults replaces [Options.Faults]; nil means no faults. Calls that have begun keep
// their fault.
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

// Company returns a copy of a company's properties, without its id.
func (s *Server) Company(id string) (map[string]json.RawMessage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store.company(id)
}

// Calls returns the calls so far in the order of their answers, or none without
// [Options.KeepCalls].
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
		stats.MaxInWindow = max(stats.MaxInWindow, w.Most())
	}
	return stats
}

var _ http.Handler = (*Server)(nil)
