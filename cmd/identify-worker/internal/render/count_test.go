package render

import "testing"

func TestThousands(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 7: "7", 999: "999", 1000: "1,000", 12345: "12,345", 1234567: "1,234,567"} {
		if got := Thousands(n); got != want {
			t.Errorf("thousands(%d) = %s", n, got)
		}
	}
	if got := Counted(1, "call") + Counted(2, "call"); got != "1 call2 calls" {
		t.Error(got)
	}
}

func TestRoughNumber(t *testing.T) {
	t.Parallel()
	for x, want := range map[float64]string{0: "0", 1: "1", 0.1: "0.1", 1. / 6: "0.17", 1. / 1440: "0.00069", 7. / 3: "2.3", 9.99: "10", 10.4: "10", 599.6: "600", 1.2e6: "1,200,000"} {
		if got := RoughNumber(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
}

func TestRoughSize(t *testing.T) {
	t.Parallel()
	for bytes, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 3 << 29: "1.5 GiB", 1 << 40: "1.0 TiB", 1 << 52: "4096.0 TiB"} {
		if got := RoughSize(bytes); got != want {
			t.Errorf("%d: %s, want %s", bytes, got, want)
		}
	}
}
