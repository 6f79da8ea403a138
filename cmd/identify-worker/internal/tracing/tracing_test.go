package tracing

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// The SDK takes its own variables from the process's environment, which has the last word.
func TestTracingEnvironment(t *testing.T) {
	var (
		path string
		data tracepb.TracesData
	)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		path = r.URL.Path
		body, err := io.ReadAll(r.Body)
		if err != nil || proto.Unmarshal(body, &data) != nil {
			t.Errorf("got %q, %v", body, err)
		}
	}))
	defer collector.Close()
	env := map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.URL + "/mine"}
	for name, text := range map[string]string{
		"OTEL_SERVICE_NAME": "delivery", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.name=no",
		"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0",
	} {
		t.Setenv(name, text)
	}
	tracing := Start(t.Context(), func(name string) string { return env[name] }, "v1", slog.New(slog.DiscardHandler))
	_, none := tracing.Tracer().Start(t.Context(), "not sampled")
	none.End()
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled})
	_, some := tracing.Tracer().Start(trace.ContextWithRemoteSpanContext(t.Context(), parent), "sampled")
	some.End()
	tracing.Close()
	collector.Close()
	if len(data.GetResourceSpans()) != 1 || path != "/mine" {
		t.Fatalf("got %v at %s", &data, path)
	}
	resource := data.GetResourceSpans()[0]
	if scopes := resource.GetScopeSpans(); len(scopes) != 1 || len(scopes[0].GetSpans()) != 1 || scopes[0].GetSpans()[0].GetName() != "sampled" {
		t.Errorf("got the spans %v", scopes)
	}
	for key, want := range map[string]string{"service.name": "delivery", "deployment.environment.name": "test", "service.version": "v1", "telemetry.sdk.language": "go"} {
		if got := attributeOf(resource.GetResource().GetAttributes(), key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

func attributeOf(attributes []*commonpb.KeyValue, key string) string {
	for _, a := range attributes {
		if a.GetKey() == key {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
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
		"a broken header":    {map[string]string{"HEADERS": "a=b,MARK"}, "OTEL_EXPORTER_OTLP_HEADERS: must be percent-encoded name=value pairs"},
		"a header's end":     {map[string]string{"HEADERS": "a=b%0aMARK"}, "OTEL_EXPORTER_OTLP_HEADERS: must be percent-encoded name=value pairs"},
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
		o, err := readOTLP(func(name string) string { return env[name] }, "v1")
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
	if tracing := Start(t.Context(), func(string) string { return "" }, "v1", nil); tracing != nil || tracing.Tracer() != nil {
		t.Error("there is tracing without a collector")
	}
}

func testCollector(t *testing.T, url string, log io.Writer) *collector {
	t.Helper()
	o, err := readOTLP(func(name string) string { return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url}[name] }, "v1")
	if err != nil {
		t.Fatal(err)
	}
	return newCollector(o, slog.New(slog.NewTextHandler(log, nil)))
}

func oneSpan() []*tracepb.ResourceSpans {
	return []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{Name: "x"}}}}}}
}
