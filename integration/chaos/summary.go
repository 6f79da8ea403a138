package main

import (
	"fmt"
	"strings"
	"time"
)

// summary is the result of one round, or of several.
type summary struct {
	rounds  int
	seed    uint64
	elapsed time.Duration
	limit   string

	kills, terms, freezes, serverKills, cuts, distances, starved, volleys int

	events, calls, letters int
	backfill               int // of the events
	overtook               int // live events that took effect before older backfill of their users
	most                   int // calls in one window
	repeats                int // calls that repeated delivered events
	late                   int // calls of a thawed replica, which no worker can prevent
	broughtBack            int // calls with events whose removal a killed server had confirmed
	standstill             time.Duration
	violations             []string
}

func (s *summary) broken() bool { return len(s.violations) > 0 }

// add adds o to s.
func (s *summary) add(o *summary) {
	s.rounds++
	s.seed = o.seed
	s.elapsed += o.elapsed
	s.kills += o.kills
	s.terms += o.terms
	s.freezes += o.freezes
	s.serverKills += o.serverKills
	s.cuts += o.cuts
	s.distances += o.distances
	s.starved += o.starved
	s.volleys += o.volleys
	s.events += o.events
	s.calls += o.calls
	s.letters += o.letters
	s.backfill += o.backfill
	s.overtook += o.overtook
	s.repeats += o.repeats
	s.late += o.late
	s.broughtBack += o.broughtBack
	s.standstill = max(s.standstill, o.standstill)
	s.violations = append(s.violations, o.violations...)
}

func (s *summary) verdict() string {
	if s.broken() {
		return "BROKEN"
	}
	return "kept"
}

// String formats the summary for people.
func (s summary) String() string {
	var b strings.Builder
	if s.rounds > 0 {
		fmt.Fprintf(&b, "%d rounds", s.rounds)
	} else {
		fmt.Fprintf(&b, "seed %d", s.seed)
	}
	fmt.Fprintf(&b, ", %v: every promise %s\n", s.elapsed.Round(time.Second), s.verdict())
	fmt.Fprintf(&b, "  %d replica kills, %d server kills, %d freezes, %d SIGTERMs, %d connection faults, %d distances, %d tenths of a CPU, %d hostile volleys\n",
		s.kills, s.serverKills, s.freezes, s.terms, s.cuts, s.distances, s.starved, s.volleys)
	fmt.Fprintf(&b, "  %d events, %d calls, %d dead letters, %d calls repeated, longest stand-still of live events %v\n", s.events, s.calls, s.letters, s.repeats, s.standstill.Round(10*time.Millisecond))
	fmt.Fprintf(&b, "  %d of the events were backfill, %d live events overtook older backfill of their users\n", s.backfill, s.overtook)
	if s.rounds == 0 {
		fmt.Fprintf(&b, "  at most %d calls in a window, the limit is %s\n", s.most, s.limit)
	}
	if s.late > 0 {
		fmt.Fprintf(&b, "  %d late calls of replicas that were frozen between the last check and the call\n", s.late)
	}
	if s.broughtBack > 0 {
		fmt.Fprintf(&b, "  %d calls repeated events whose removal a killed server had confirmed, together with the newest\n", s.broughtBack)
	}
	for _, v := range s.violations {
		fmt.Fprintf(&b, "\n%s\n", v)
	}
	return b.String()
}

// heading returns the record's first lines.
func heading() string {
	return "| seed | seconds | replica kills | server kills | freezes | SIGTERMs | connection faults | distances | tenths of a CPU | hostile volleys | events | backfill | overtaken by live | calls | dead letters | limit | most in a window | repeats | late at a thaw | brought back | longest stand-still | promises |\n" +
		"|" + strings.Repeat("---|", 22) + "\n"
}

// line returns a round's line in the record.
func (s *summary) line() string {
	return fmt.Sprintf("| %d | %.0f | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %s | %d | %d | %d | %d | %.1f s | %s |",
		s.seed, s.elapsed.Seconds(), s.kills, s.serverKills, s.freezes, s.terms, s.cuts, s.distances, s.starved, s.volleys,
		s.events, s.backfill, s.overtook, s.calls, s.letters, s.limit, s.most, s.repeats, s.late, s.broughtBack, s.standstill.Seconds(), s.verdict())
}
