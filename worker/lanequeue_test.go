package worker

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A laneQueue behaves like a slice.
func TestLaneQueueModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var q laneQueue
		var model []*lane
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				for range rapid.IntRange(1, 100).Draw(t, "n") {
					l := &lane{failing: rapid.Bool().Draw(t, "failing")}
					q.push(l)
					model = append(model, l)
				}
			},
			"pop": func(t *rapid.T) {
				for range rapid.IntRange(1, 100).Draw(t, "n") {
					got := q.pop()
					if len(model) == 0 {
						if got != nil {
							t.Fatal("a lane out of an empty queue")
						}
						continue
					}
					if got != model[0] {
						t.Fatal("not the lane that has waited longest")
					}
					model = model[1:]
				}
			},
			"random": func(t *rapid.T) {
				got := q.popRandom()
				i := slices.Index(model, got)
				if got == nil && len(model) == 0 {
					return
				}
				if i < 0 {
					t.Fatal("a lane that was not waiting")
				}
				healthy := slices.ContainsFunc(model, func(l *lane) bool { return !l.failing })
				if got.failing && healthy {
					t.Fatal("a failing lane was chosen although there is a healthy one")
				}
				model = slices.Delete(slices.Clone(model), i, i+1)
			},
			"remove": func(t *rapid.T) {
				gone := func(l *lane) bool { return l.failing }
				q.remove(gone)
				model = slices.DeleteFunc(slices.Clone(model), gone)
			},
			"": func(t *rapid.T) {
				if q.len() != len(model) {
					t.Fatalf("%d lanes, want %d", q.len(), len(model))
				}
				if !slices.Equal(q.lanes[q.head:], model) {
					t.Fatal("the order is not that of arrival")
				}
			},
		})
	})
}

// The queue does not keep removed lanes from the garbage collector.
func TestLaneQueueLetsGo(t *testing.T) {
	t.Parallel()
	var q laneQueue
	for range 1000 {
		q.push(&lane{})
	}
	for range 900 {
		q.pop()
	}
	q.push(&lane{})
	if n := len(q.lanes); n != 101 {
		t.Errorf("%d places for 101 lanes", n)
	}
	q.remove(func(*lane) bool { return true })
	if slices.ContainsFunc(q.lanes[:cap(q.lanes)], func(l *lane) bool { return l != nil }) {
		t.Error("a removed lane is still referred to")
	}
}

// Every healthy lane gets its turn as a probe.
func TestLaneQueueProbesAll(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 1000 {
		var q laneQueue
		lanes := []*lane{{failing: true}, {}, {failing: true}, {}, {}}
		for _, l := range lanes {
			q.push(l)
		}
		seen[slices.Index(lanes, q.popRandom())] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d of 3 healthy lanes were chosen in 1000 tries", len(seen))
	}
}
