package userpilot_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
)

// event1KiB returns an event of about 1 KiB for a numbered user, with values that depend on
// the serial number.
func event1KiB(user, serial int) []byte {
	b := fmt.Appendf(nil, `{"user_id":"user_%06d","metadata":{"serial":%d`, user, serial)
	for i := 0; len(b) < 940; i++ {
		b = fmt.Appendf(b, `,"property_%02d":"a value of some length %d"`, i, serial)
	}
	return append(b, `},"company":{"company_id":"comp_techstartup_2024","name":"TechStartup Inc."}}`...)
}

func BenchmarkParse(b *testing.B) {
	body := event1KiB(1, 1)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := userpilot.Parse(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	for _, n := range []int{1, 2, 10, 1000} {
		events := make([]userpilot.Event, n)
		for i := range events {
			events[i], _ = userpilot.Parse(event1KiB(1, i))
		}
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, merged := userpilot.Merge(events); merged != n {
					b.Fatalf("merged %d of %d", merged, n)
				}
			}
		})
	}
}

// BenchmarkIdentify compares calls with the simplest use of net/http, 64 at a time.
func BenchmarkIdentify(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	body := event1KiB(1, 1)

	b.Run("client", func(b *testing.B) {
		client := newClient(b, userpilot.ClientConfig{Endpoint: server.URL})
		defer client.CloseIdleConnections()
		allow := func() error { return nil }
		inParallel(b, func() error {
			_, err := client.Attempt(b.Context(), userpilot.Call{Body: body, Begin: allow, Guard: allow, Timeout: 10 * time.Second})
			return err
		})
	})
	b.Run("plain", func(b *testing.B) {
		transport := &http.Transport{MaxIdleConnsPerHost: 64}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
		inParallel(b, func() error {
			resp, err := client.Post(server.URL, "application/json", bytes.NewReader(body))
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			return resp.Body.Close()
		})
	})
}

// inParallel measures call with 64 callers, each of which calls again as soon as the last call has returned.
func inParallel(b *testing.B, call func() error) {
	b.ReportAllocs()
	b.SetParallelism(64 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := call(); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
