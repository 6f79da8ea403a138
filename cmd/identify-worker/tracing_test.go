//go:build !noembed

package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/trace"
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
	if !strings.Contains(logged, "traces are sent") {
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
		"gRPC":     {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://" + grpc.Addr().String(), "usually 4318? 4317 is that of gRPC"},
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

// The SDK takes its own variables from the process's environment, which has the last word.
func TestTracingEnvironment(t *testing.T) {
	collector := newStandIn(t)
	env := map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.URL + "/mine"}
	for name, text := range map[string]string{
		"OTEL_SERVICE_NAME": "delivery", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.name=no",
		"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0",
	} {
		t.Setenv(name, text)
	}
	p := &program{env: func(name string) string { return env[name] }}
	tracing := p.startTracing(t.Context(), slog.New(slog.DiscardHandler))
	_, none := tracing.tracer().Start(t.Context(), "not sampled")
	none.End()
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled})
	_, some := tracing.tracer().Start(trace.ContextWithRemoteSpanContext(t.Context(), parent), "sampled")
	some.End()
	tracing.close()
	spans := collector.named("")
	if len(spans) != 1 || spans[0].GetName() != "sampled" || !slices.Equal(collector.paths, []string{"/mine"}) {
		t.Fatalf("%d spans at %v", len(spans), collector.paths)
	}
	resource := collector.of[spans[0]].GetResource().GetAttributes()
	for key, want := range map[string]string{"service.name": "delivery", "deployment.environment.name": "test", "service.version": buildVersion(), "telemetry.sdk.language": "go"} {
		if got := valueOf(resource, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

// What is named wrongly is said by the variable's name, without what is in it.
func TestReadOTLP(t *testing.T) {
	t.Parallel()
	const here = "http://collector:4318"
	for name, test := range map[string]struct {
		env  map[string]string // besides an endpoint for all
		want string            // URL, error, or empty for none
	}{
		"base":               {nil, here + "/v1/traces"},
		"base with a path":   {map[string]string{"ENDPOINT": here + "/otlp/"}, here + "/otlp/v1/traces"},
		"traces alone":       {map[string]string{"TRACES_ENDPOINT": here + "/in"}, here + "/in"},
		"no path":            {map[string]string{"TRACES_ENDPOINT": here}, here},
		"nowhere":            {map[string]string{"ENDPOINT": ""}, ""},
		"disabled":           {map[string]string{"SDK_DISABLED": "TRUE"}, ""},
		"no exporter":        {map[string]string{"TRACES_EXPORTER": "none"}, ""},
		"another exporter":   {map[string]string{"TRACES_EXPORTER": "MARK"}, "OTEL_TRACES_EXPORTER: must be otlp or none"},
		"no scheme":          {map[string]string{"ENDPOINT": "MARK:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL such as http://collector:4318"},
		"gRPC":               {map[string]string{"TRACES_PROTOCOL": "grpc"}, `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "grpc" is not supported`},
		"JSON":               {map[string]string{"PROTOCOL": "http/json"}, `OTEL_EXPORTER_OTLP_PROTOCOL: "http/json" is not supported`},
		"the right protocol": {map[string]string{"PROTOCOL": "grpc", "TRACES_PROTOCOL": "http/protobuf"}, here + "/v1/traces"},
		"a broken header":    {map[string]string{"HEADERS": "a=b,MARK"}, "OTEL_EXPORTER_OTLP_HEADERS: must be name=value pairs"},
		"a header's end":     {map[string]string{"HEADERS": "a=b%0aMARK"}, "OTEL_EXPORTER_OTLP_HEADERS: must be name=value pairs"},
		"headers":            {map[string]string{"HEADERS": "a=b=c,,d=%20"}, here + "/v1/traces"},
		"no time":            {map[string]string{"TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT: must be milliseconds"},
		"compression":        {map[string]string{"COMPRESSION": "zstd"}, "OTEL_EXPORTER_OTLP_COMPRESSION: must be gzip or none"},
		"no file":            {map[string]string{"CERTIFICATE": "/nowhere/ca.pem"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: open /nowhere/ca.pem"},
		"no certificate":     {map[string]string{"CERTIFICATE": "tracing_test.go"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: the file holds no certificate"},
		"no key":             {map[string]string{"CLIENT_CERTIFICATE": "/nowhere/cert.pem"}, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: open "},
	} {
		env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": here}
		for variable, text := range test.env {
			switch variable {
			case "SDK_DISABLED", "TRACES_EXPORTER":
				env["OTEL_"+variable] = text
			default:
				env["OTEL_EXPORTER_OTLP_"+variable] = text
			}
		}
		o, err := readOTLP(func(name string) string { return env[name] })
		got := ""
		switch {
		case err != nil:
			got = err.Error()
		case o != nil:
			got = o.url.String()
		}
		if err == nil && got != test.want || err != nil && (test.want == "" || !strings.HasPrefix(got, test.want)) || strings.Contains(got, "MARK") {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
	p := &program{env: func(string) string { return "" }}
	if tracing := p.startTracing(t.Context(), nil); tracing != nil || tracing.tracer() != nil {
		t.Error("there is tracing without a collector")
	}
}

func testCollector(t *testing.T, url string, log io.Writer) *collector {
	t.Helper()
	o, err := readOTLP(func(name string) string { return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url}[name] })
	if err != nil {
		t.Fatal(err)
	}
	return newCollector(o, slog.New(slog.NewTextHandler(log, nil)))
}

func oneSpan() []*tracepb.ResourceSpans {
	return []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{Name: "x"}}}}}}
}

func TestDoctorAsksTheCollector(t *testing.T) {
	t.Parallel()
	collector := newStandIn(t)
	host := strings.TrimPrefix(collector.URL, "http://")
	ask := func(env map[string]string) func(*examination) {
		d := &doctor{env: func(name string) string { return env[name] }}
		return func(e *examination) { d.askCollector(t.Context(), e) }
	}
	expect(t, "none", ask(nil))
	expect(t, "there", ask(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL}), "ok traces "+host+" takes them")
	expect(t, "gRPC", ask(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}),
		"warn traces there are none: OTEL_EXPORTER_OTLP_PROTOCOL: ...set it to http/protobuf")
	refusing := httptest.NewServer(http.NotFoundHandler())
	defer refusing.Close()
	expect(t, "refused", ask(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": refusing.URL}), "warn traces ...does not take them: it answers 404")
}
