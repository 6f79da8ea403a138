package doctor

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

func TestDoctorAsksTheCollector(t *testing.T) {
	t.Parallel()
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer collector.Close()
	host := strings.TrimPrefix(collector.URL, "http://")
	ask := func(env map[string]string) func(*examination) {
		d := &doctor{env: &flags.Env{Getenv: func(name string) string { return env[name] }}}
		return func(e *examination) { d.askCollector(t.Context(), e) }
	}
	expect(t, "none", ask(nil))
	expect(t, "there", ask(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL}), "ok traces "+host+" accepts them")
	expect(t, "gRPC", ask(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}),
		"warn traces tracing disabled: OTEL_EXPORTER_OTLP_PROTOCOL: ...set it to http/protobuf")
	unpacking := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if packed, err := gzip.NewReader(r.Body); r.Header.Get("Content-Encoding") != "gzip" || err != nil {
			w.WriteHeader(http.StatusBadRequest)
		} else if body, err := io.ReadAll(packed); err != nil || len(body) > 0 {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	defer unpacking.Close()
	expect(t, "gzip", ask(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": unpacking.URL, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}),
		"ok traces "+strings.TrimPrefix(unpacking.URL, "http://")+" accepts them")
	refusing := httptest.NewServer(http.NotFoundHandler())
	defer refusing.Close()
	expect(t, "refused", ask(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": refusing.URL}), "warn traces ...does not accept them: it answered 404")
}
