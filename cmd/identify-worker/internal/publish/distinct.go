package publish

import (
	"hash/maphash"
	"math"
	"math/bits"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
)

const (
	// maxExact is how many different texts are counted exactly.
	maxExact = 100_000
	// registerBits is the binary logarithm of the number of registers. With 16,384 the standard error is
	// 0.8%, and above 5 times as many texts the estimate needs no correction.
	registerBits = 14
	registers    = 1 << registerBits
)

// distinct counts different texts in memory that does not grow with them: exactly up to maxExact, and
// then by HyperLogLog. Libraries for that also store and merge such counts, which nobody needs here.
type distinct struct {
	seed  maphash.Seed
	seen  map[uint64]struct{} // hashes; nil once there are more than maxExact
	ranks [registers]uint8    // for each register, the most leading zeros of a hash, and one more
	added int
}

func newDistinct() *distinct {
	return &distinct{seed: maphash.MakeSeed(), seen: map[uint64]struct{}{}}
}

func (d *distinct) add(text string) {
	d.added++
	hash := maphash.String(d.seed, text)
	rank := uint8(bits.LeadingZeros64(hash<<registerBits|1<<(registerBits-1)) + 1)
	if register := &d.ranks[hash>>(64-registerBits)]; *register < rank {
		*register = rank
	}
	if d.seen == nil {
		return
	}
	d.seen[hash] = struct{}{}
	if len(d.seen) > maxExact {
		d.seen = nil
	}
}

// count is how many different texts there are, and whether that is exact. It is more than maxExact
// otherwise.
func (d *distinct) count() (n int, exact bool) {
	if d.seen != nil {
		return len(d.seen), true
	}
	sum := 0.0
	for _, rank := range &d.ranks {
		sum += math.Ldexp(1, -int(rank))
	}
	const bias = 0.7213 / (1 + 1.079/registers)
	n = int(bias * registers * registers / sum)
	return max(maxExact+1, min(n, d.added)), false
}

// describe tells the count, with two digits if it is an estimate.
func (d *distinct) describe(what, plural string) string {
	n, exact := d.count()
	if !exact {
		unit := int(math.Pow10(int(math.Log10(float64(n))) - 1))
		return "about " + render.Thousands((n+unit/2)/unit*unit) + " " + plural
	}
	if n == 1 {
		return "1 " + what
	}
	return render.Thousands(n) + " " + plural
}
