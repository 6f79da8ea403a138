package worker

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// sick returns a lane that is failing, or not.
func sick(failing bool) *lane {
	l := &lane{}
	if failing {
		l.fails(time.Unix(1_000_000, 0), "")
	}
	return l
}

// lanes lists the lanes of a list.
func (q *laneList) lanes() (all []*lane) {
	for l := q.first; l != nil; l = l.next {
		all = append(all, l)
	}
	return all
}

// kind is the part of a queue that a lane belongs to.
type kind struct{ live, failing bool }

func kindOf(l *lane) kind { return kind{l.live > 0, l.failing()} }

// queueModel is a laneQueue as four slices.
type queueModel struct {
	q     laneQueue
	lanes map[kind][]*lane
	taken map[bool]int // of each class: lanes taken that are well, in a row
}

func (m *queueModel) push(t *rapid.T) {
	for range rapid.IntRange(1, 100).Draw(t, "n") {
		l := sick(rapid.Bool().Draw(t, "failing"))
		l.live = rapid.IntRange(0, 1).Draw(t, "live")
		m.q.push(l)
		m.lanes[kindOf(l)] = append(m.lanes[kindOf(l)], l)
	}
}

func (m *queueModel) len(live bool) int {
	return len(m.lanes[kind{live, false}]) + len(m.lanes[kind{live, true}])
}

func (m *queueModel) drop(t *rapid.T, l *lane) {
	i := slices.Index(m.lanes[kindOf(l)], l)
	if i < 0 {
		t.Fatal("a lane that was not waiting")
	}
	m.lanes[kindOf(l)] = slices.Delete(slices.Clone(m.lanes[kindOf(l)]), i, i+1)
}

func (m *queueModel) pop(t *rapid.T) {
	got := m.q.pop()
	if got == nil {
		if m.len(true)+m.len(false) > 0 {
			t.Fatal("no lane, although some wait")
		}
		return
	}
	of := kindOf(got)
	switch {
	case !of.live && m.len(true) > 0:
		t.Fatal("backfill has overtaken live events")
	case len(m.lanes[of]) == 0 || got != m.lanes[of][0]:
		t.Fatal("not the lane of its kind that has waited longest")
	case of.failing && len(m.lanes[kind{of.live, false}]) > 0 && m.taken[of.live] < turnsOfFailing-1:
		t.Fatal("a failing lane's turn has come early")
	case !of.failing && len(m.lanes[kind{of.live, true}]) > 0 && m.taken[of.live] >= turnsOfFailing-1:
		t.Fatal("a failing lane's turn has not come")
	}
	if m.taken[of.live]++; of.failing {
		m.taken[of.live] = 0
	}
	m.drop(t, got)
	if rapid.IntRange(0, 3).Draw(t, "back") == 0 {
		m.q.pushFront(got)
		m.lanes[of] = slices.Insert(slices.Clone(m.lanes[of]), 0, got)
	}
}

func (m *queueModel) probe(t *rapid.T) {
	got := m.q.popProbe()
	if got == nil {
		if m.len(true)+m.len(false) > 0 {
			t.Fatal("no lane, although some wait")
		}
		return
	}
	well := len(m.lanes[kind{true, false}])
	switch {
	case got.failing() && well+len(m.lanes[kind{false, false}]) > 0:
		t.Fatal("a failing lane was chosen although there is one that is well")
	case got.live == 0 && well > 0:
		t.Fatal("a lane without live events was chosen although there is one with some that is well")
	}
	m.drop(t, got)
}

// A lane's first live event comes.
func (m *queueModel) promote(t *rapid.T) {
	for _, failing := range []bool{false, true} {
		if waiting := m.lanes[kind{false, failing}]; len(waiting) > 0 {
			l := rapid.SampledFrom(waiting).Draw(t, "lane")
			m.drop(t, l)
			m.q.remove(l)
			l.live = 1
			m.q.push(l)
			m.lanes[kindOf(l)] = append(m.lanes[kindOf(l)], l)
		}
	}
}

// A laneQueue behaves like four slices.
func TestLaneQueueModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &queueModel{lanes: map[kind][]*lane{}, taken: map[bool]int{}}
		t.Repeat(map[string]func(*rapid.T){
			"push": m.push, "pop": m.pop, "probe": m.probe, "promote": m.promote,
			"remove": func(*rapid.T) {
				m.q.removeAll((*lane).failing)
				delete(m.lanes, kind{true, true})
				delete(m.lanes, kind{false, true})
			},
			"": func(t *rapid.T) {
				well := len(m.lanes[kind{true, false}]) + len(m.lanes[kind{false, false}])
				if m.q.len() != m.len(true)+m.len(false) || m.q.lenWell() != well {
					t.Fatalf("%d lanes, %d of them are well; want %d and %d", m.q.len(), m.q.lenWell(), m.len(true)+m.len(false), well)
				}
				for of, list := range map[kind]*laneList{
					{true, false}: &m.q.live.well, {true, true}: &m.q.live.failing, {false, false}: &m.q.backfill.well, {false, true}: &m.q.backfill.failing,
				} {
					if !slices.Equal(list.lanes(), m.lanes[of]) || list.n != len(m.lanes[of]) {
						t.Fatal("the order is not that of arrival")
					}
				}
			},
		})
	})
}

// Backfill gets its share of the calls even if there are always live events, and no more than that.
func TestLaneQueueShare(t *testing.T) {
	t.Parallel()
	for _, share := range []float64{0, 0.1, 0.5, 1} {
		q := laneQueue{share: share}
		for range 2000 {
			q.push(&lane{live: 1})
			q.push(&lane{})
		}
		got := 0
		for range 1000 {
			if q.pop().live == 0 {
				got++
			}
		}
		if want := int(share * 1000); got < want-1 || got > want+1 {
			t.Errorf("a share of %v: %d of 1000 calls", share, got)
		}
	}
}

// Every lane that is well gets its turn as a probe.
func TestLaneQueueProbesAll(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 1000 {
		var q laneQueue
		lanes := []*lane{sick(true), {}, sick(true), {}, {}}
		for _, l := range lanes {
			q.push(l)
		}
		if got := slices.Index(lanes, q.popProbe()); got != 4 {
			t.Fatalf("lane %d was chosen first, not the newest one that is well", got)
		}
		seen[slices.Index(lanes, q.popProbe())] = true
	}
	if len(seen) != 2 {
		t.Errorf("%d of the 2 other lanes that are well were chosen in 1000 tries", len(seen))
	}
}
