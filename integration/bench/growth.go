package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
)

// growing is a cost that grows with a size, and must not grow much faster.
type growing struct {
	what  string
	unit  string                                                                  // of the size, such as "tracked users"
	sizes [3]int                                                                  // each a multiple of the one before
	floor float64                                                                 // costs below this count as this
	show  string                                                                  // format of a cost, such as "%.1f s"
	cost  func(ctx context.Context, b *bench, size int) (cost float64, err error) // measures one size, on a server of its own
}

// growths lists all growing costs.
func growths() []growing {
	return slices.Concat([]growing{deaths()}, fleetGrowths(), letterGrowths(), workerGrowths())
}

// growthLimit is the greatest exponent: ten times the size may cost fourteen times as much, to
// allow for a larger index and for the machine.
const growthLimit = 1.15

// growth judges how costs grow and not how large they are: a slower machine changes all of them
// alike.
func growth(ctx context.Context, b *bench) ([]row, error) {
	var rows []row
	for _, g := range growths() {
		if !strings.Contains(g.what, b.growing) {
			continue
		}
		costs := make([]float64, len(g.sizes))
		for i, size := range g.sizes {
			size = max(1, int(float64(size)*b.growthScale))
			cost, err := g.cost(ctx, b, size)
			if err != nil {
				return rows, fmt.Errorf("%s, %d %s: %w", g.what, size, g.unit, err)
			}
			b.say("growth: %s, %d %s: "+g.show, g.what, size, g.unit, cost)
			costs[i] = cost
		}
		rows = append(rows, g.row(costs))
	}
	return rows, nil
}

func (g growing) row(costs []float64) row {
	var sizes, shown []string
	for i, cost := range costs {
		sizes, shown = append(sizes, thousands(g.sizes[i])), append(shown, fmt.Sprintf(g.show, cost))
	}
	e := g.exponent(costs)
	return row{
		what:     fmt.Sprintf("%s: %s %s", g.what, strings.Join(sizes, ", "), g.unit),
		goal:     fmt.Sprintf("grows with an exponent of at most %.2f", growthLimit),
		measured: fmt.Sprintf("%s: exponent %.2f", strings.Join(shown, ", "), e),
		pass:     e <= growthLimit,
	}
}

// exponent returns the e for which the cost grows as size^e: from the smallest size to the largest,
// or from the middle one to the largest, whichever is worse. A cost that is constant at first must
// not hide later growth.
func (g growing) exponent(costs []float64) float64 {
	last := len(costs) - 1
	worst := math.Inf(-1)
	for i := range last {
		from, to := max(costs[i], g.floor), max(costs[last], g.floor)
		worst = max(worst, math.Log(to/from)/math.Log(float64(g.sizes[last])/float64(g.sizes[i])))
	}
	return worst
}

// thousands formats a size, such as 3, 10k or 1M.
func thousands(n int) string {
	switch {
	case n >= 1e6 && n%1e5 == 0:
		return fmt.Sprintf("%gM", float64(n)/1e6)
	case n >= 1000 && n%100 == 0:
		return fmt.Sprintf("%gk", float64(n)/1000)
	}
	return fmt.Sprint(n)
}
