package queue

import (
	"strconv"
	"testing"
)

func TestDistinct(t *testing.T) {
	t.Parallel()
	for _, n := range []uint64{0, 1, 1000, maxDistinct, 1_000_000} {
		d := newDistinct()
		for i := range n {
			d.add(strconv.FormatUint(i, 10))
			d.add(strconv.FormatUint(i/2, 10)) // was there before
		}
		got := d.count()
		if n <= maxDistinct && got != n || max(got, n)-min(got, n) > n/40 {
			t.Errorf("%d texts are counted as %d", n, got)
		}
		if len(d.hashes) > maxDistinct {
			t.Errorf("%d hashes are kept", len(d.hashes))
		}
	}
}
