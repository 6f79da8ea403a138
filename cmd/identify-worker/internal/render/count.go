package render

import (
	"fmt"
	"math"
	"strconv"
)

// Thousands writes a number with commas: 1,234,567.
func Thousands[T int | uint64](n T) string {
	digits := strconv.FormatUint(uint64(n), 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// Counted is "1 event" or "2,000 events".
func Counted[T int | uint64](n T, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return Thousands(n) + " " + what + "s"
}

// RoughNumber writes a number without a fraction, or below 10 with two digits: 1,200; 2.3; 0.17.
func RoughNumber(x float64) string {
	if x < 10 {
		return strconv.FormatFloat(x, 'g', 2, 64)
	}
	return Thousands(uint64(math.Round(x)))
}

// RoughSize formats a size to one decimal place.
func RoughSize(bytes int64) string {
	const units = "KMGT"
	size, unit := float64(bytes), -1
	for ; size >= 1024 && unit+1 < len(units); unit++ {
		size /= 1024
	}
	if unit < 0 {
		return fmt.Sprintf("%d B", bytes)
	}
	return fmt.Sprintf("%.1f %siB", size, units[unit:unit+1])
}
