package queue

import (
	"strconv"
	"testing"
)

func TestUserCount(t *testing.T) {
	t.Parallel()
	for _, n := range []uint64{0, 1, 1000, maxExactUsers, 1_000_000} {
		d := newUserCount()
		for i := range n {
			d.add(strconv.FormatUint(i, 10))
			d.add(strconv.FormatUint(i/2, 10)) // was there before
		}
		got := d.count()
		if n <= maxExactUsers && got != n || max(got, n)-min(got, n) > n/40 {
			t.Errorf("%d texts are counted as %d", n, got)
		}
		if len(d.hashes) > maxExactUsers {
			t.Errorf("%d hashes are kept", len(d.hashes))
		}
	}
}
