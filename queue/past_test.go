package queue

import "testing"

// Anyone who may publish can write an origin. It can make an event older than its place in the
// stream, and so weaker, but never newer: then it would overwrite what came after it.
func TestOriginIsNeverNewer(t *testing.T) {
	t.Parallel()
	c := &Claim{tenure: &tenure{created: made}}
	own := Age{made, 7}
	for name, test := range map[string]struct {
		past *Past
		want Age
	}{
		"never dead":              {nil, own},
		"replayed":                {&Past{Origin: Age{made, 3}}, Age{made, 3}},
		"of an earlier stream":    {&Past{Origin: Age{made.Add(-1), 900}}, Age{made.Add(-1), 900}},
		"unreadable":              {&Past{}, Age{}},
		"forced":                  {&Past{Origin: Age{made, 3}, Forced: true}, own},
		"forged, the next event":  {&Past{Origin: Age{made, 8}}, own},
		"forged, a later stream":  {&Past{Origin: Age{made.Add(1), 1}}, own},
		"forged, the very newest": {&Past{Origin: Age{made.AddDate(100, 0, 0), 1 << 60}}, own},
	} {
		d := Delivery{Sequence: 7, Past: test.past}
		if got := c.Age(d); got.Compare(test.want) != 0 {
			t.Errorf("%s: its age is %v, want %v", name, got, test.want)
		}
		if late := test.want.Compare(own) < 0; c.IsLate(d) != late {
			t.Errorf("%s: it is late: %t", name, !late)
		}
	}
}
