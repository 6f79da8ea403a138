package flags

import (
	"testing"

	"github.com/spf13/cobra"
)

func TestParseSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "1023": 1023, "1KiB": 1 << 10, "64MiB": 64 << 20, "3GiB": 3 << 30, "1TiB": 1 << 40,
		"": -1, "-1": -1, "KiB": -1, "iB": -1, "1kiB": -1, "1MB": -1, "1 MiB": -1, "1.5GiB": -1, "5iB": -1, "9999999TiB": -1,
	} {
		got, ok := parseSize(text)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("parseSize(%q) = %d, want %d", text, got, want)
		}
		if back, _ := parseSize(FormatSize(max(0, want))); ok && back != want {
			t.Errorf("%s reads as %d", FormatSize(want), back)
		}
	}
}

func TestPart(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"0": "0", "1": "1", "0.25": "0.25", ".5": "0.5", "1e-3": "0.001",
		"": "", "-0.1": "", "1.1": "", "NaN": "", "Inf": "", "10%": "", "a": "",
	} {
		var part float64
		cmd := &cobra.Command{}
		Set{Cmd: cmd}.Part(&part, "part", "a part")
		flag := cmd.Flags().Lookup("part")
		if err := flag.Value.Set(text); (err == nil) != (want != "") || err == nil && flag.Value.String() != want {
			t.Errorf("%q: %v, %s", text, err, flag.Value)
		}
	}
}
