package flags

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
)

// An attempt's error names the flag that helps.
func TestExplainedAttempt(t *testing.T) {
	t.Parallel()
	key, err := userpilot.NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	private := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: userpilot.ErrNotPublic}
	}}
	for _, test := range []struct {
		config userpilot.ClientConfig
		want   string
	}{
		{userpilot.ClientConfig{Proxy: gone.URL}, " (see --proxy)"},
		{userpilot.ClientConfig{Transport: private}, " (see --allow-endpoint)"},
		{userpilot.ClientConfig{Endpoint: gone.URL}, ""},
	} {
		test.config.Key = key
		client, err := userpilot.NewClient(test.config)
		if err != nil {
			t.Fatal(err)
		}
		err = client.Identify(t.Context(), []byte("{}"))
		got := Explained(err)
		if !errors.Is(got, err) || strings.TrimPrefix(got.Error(), err.Error()) != test.want {
			t.Errorf("got %v, want %v%s", got, err, test.want)
		}
	}
}
