package queue

import "testing"

func TestConsumerLimit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ stream, account, want int }{
		{0, 0, 0}, {-1, -1, 0}, {5, 0, 5}, {5, -1, 5}, {0, 7, 7}, {-1, 7, 7}, {5, 7, 5}, {7, 5, 5},
	} {
		if got := ConsumerLimit(test.stream, test.account); got != test.want {
			t.Errorf("ConsumerLimit(%d, %d) = %d, want %d", test.stream, test.account, got, test.want)
		}
	}
}
