//go:build !noembed

package cli

import (
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// standIn is a collector that keeps what it gets.
type standIn struct {
	*httptest.Server
	mu      sync.Mutex
	headers []http.Header
	paths   []string
	raw     bytes.Buffer // all bodies, unpacked
	spans   []*tracepb.Span
	of      map[*tracepb.Span]*tracepb.ResourceSpans
}

func newStandIn(t *testing.T) *standIn {
	t.Helper()
	s := &standIn{of: map[*tracepb.Span]*tracepb.ResourceSpans{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP implements [http.Handler].
func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		in, _ = gzip.NewReader(r.Body)
	}
	body, err := io.ReadAll(in)
	var data tracepb.TracesData
	if err != nil || proto.Unmarshal(body, &data) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.headers, s.paths = append(s.headers, r.Header), append(s.paths, r.URL.Path)
	s.raw.Write(body)
	for _, resource := range data.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				s.spans = append(s.spans, span)
				s.of[span] = resource
			}
		}
	}
}

// named lists spans in the order in which they ended.
func (s *standIn) named(prefix string) (all []*tracepb.Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, span := range s.spans {
		if strings.HasPrefix(span.GetName(), prefix) {
			all = append(all, span)
		}
	}
	slices.SortFunc(all, func(a, b *tracepb.Span) int { return int(a.GetEndTimeUnixNano()) - int(b.GetEndTimeUnixNano()) })
	return all
}

func isChild(child, parent *tracepb.Span) bool {
	return bytes.Equal(child.GetParentSpanId(), parent.GetSpanId()) && bytes.Equal(child.GetTraceId(), parent.GetTraceId())
}

func valueOf(attributes []*commonpb.KeyValue, key string) string {
	for _, a := range attributes {
		if a.GetKey() == key {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// An event is one trace across processes: published, waiting, called for, dead, replayed, delivered.
// The spans tell nothing of users and keys, and the API gets its four header lines.
func TestTraces(t *testing.T) {
	t.Parallel()
	collector, f := newStandIn(t), newFixture(t)
	f.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.URL + "/otlp"
	f.env["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=Bearer%20MARK-token, X-Tenant = a"
	f.env["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"] = "gzip"
	f.status = func(body []byte) int {
		if bytes.Contains(body, []byte("MARK-bad")) {
			return http.StatusUnprocessableEntity
		}
		return http.StatusAccepted
	}
	logged := f.run(`{"user_id":"MARK-good","metadata":{"MARK":"MARK"}}`+"\n"+`{"user_id":"MARK-bad"}`, "publish")
	logged += f.work(func() {
		f.call()
		header := f.call()
		if want := []string{"Authorization", "Content-Length", "Content-Type", "User-Agent", "X-Api-Version"}; !slices.Equal(slices.Sorted(maps.Keys(header)), want) {
			t.Errorf("the API gets the headers %v", header)
		}
		f.awaitLog(`msg="dead letter"`) // it is stored, and its event leaves
	})
	f.status = func([]byte) int { return http.StatusAccepted }
	logged += f.run("", "dlq", "replay", "--all", "--yes", "--rate", "0")
	logged += f.work(func() { f.call() })

	publishes, waits, calls, burials := collector.named("publish "), collector.named("wait "), collector.named("POST "), collector.named("bury ")
	if len(publishes) != 2 || len(waits) != 3 || len(calls) != 3 || len(burials) != 1 {
		t.Fatalf("%d publish, %d wait, %d call and %d bury\n%s", len(publishes), len(waits), len(calls), len(burials), logged)
	}
	for i := range waits {
		if !slices.ContainsFunc(calls, func(c *tracepb.Span) bool { return isChild(c, waits[i]) }) || !slices.ContainsFunc(publishes, func(p *tracepb.Span) bool { return isChild(waits[i], p) }) {
			t.Errorf("wait %d, or its call, is of no event's trace", i)
		}
	}
	if !bytes.Equal(burials[0].GetTraceId(), waits[2].GetTraceId()) || burials[0].GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Error("the replay is of another trace than the death")
	}
	if got := valueOf(collector.of[calls[0]].GetResource().GetAttributes(), "service.name"); got != "identify-worker" {
		t.Errorf("the service is %q", got)
	}
	if got := valueOf(calls[0].GetAttributes(), "url.full"); got != f.env["USERPILOT_ENDPOINT"]+"/v1/identify" {
		t.Errorf("called %q", got)
	}
	for i, header := range collector.headers {
		if header.Get("Authorization") != "Bearer MARK-token" || header.Get("X-Tenant") != "a" || collector.paths[i] != "/otlp/v1/traces" || header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("the collector gets %v at %s", header, collector.paths[i])
		}
	}
	for what, text := range map[string]string{"spans tell": collector.raw.String(), "the log tells": logged} {
		if at := strings.Index(text, "MARK"); at >= 0 {
			t.Errorf("%s %.60q", what, text[at:])
		}
	}
	if !strings.Contains(logged, "tracing enabled") {
		t.Error(logged)
	}
}

// Without a collector nothing of tracing is there. One that is away, that speaks gRPC, or that never
// answers keeps nothing from being delivered, and is logged once.
func TestDeliveryNeedsNoCollector(t *testing.T) {
	t.Parallel()
	away := httptest.NewServer(nil)
	away.Close()
	grpc, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { grpc.Close() })
	go func() {
		for {
			conn, err := grpc.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 24))                                                // where HTTP/2's preface should be
			_, _ = conn.Write([]byte("\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00")) // SETTINGS
			_ = conn.Close()
		}
	}()
	for name, test := range map[string]struct{ variable, text, want string }{
		"unset":    {"OTEL_EXPORTER_OTLP_HEADERS", "a=b", ""},
		"disabled": {"OTEL_SDK_DISABLED", "true", ""},
		"away":     {"OTEL_EXPORTER_OTLP_ENDPOINT", away.URL, "connection refused"},
		"gRPC":     {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://" + grpc.Addr().String(), "usually 4318? 4317 is for gRPC"},
		"protocol": {"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", `OTEL_EXPORTER_OTLP_PROTOCOL: \"grpc\" is not supported: set it to http/protobuf`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			if name == "disabled" || name == "protocol" {
				f.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = away.URL
			}
			f.env[test.variable] = test.text
			logged := f.run(`{"user_id":"ann"}`+"\n"+`{"user_id":"bob"}`, "publish")
			work := f.work(func() { f.call(); f.call() })
			for _, text := range []string{logged, work} {
				lines := strings.Count(text, "traces")
				switch {
				case test.want == "" && lines > 0, test.want != "" && !strings.Contains(text, test.want), strings.Count(text, "level=WARN") > 1:
					t.Errorf("logged\n%s", text)
				}
			}
		})
	}
}
