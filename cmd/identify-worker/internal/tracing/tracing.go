// Package tracing sends spans to an OpenTelemetry collector, over OTLP. It alone imports
// OpenTelemetry's SDK, and starts it only where the environment names a collector.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// flushPatience is how long a command waits at its end for its last spans to be sent.
const flushPatience = 5 * time.Second

// Tracing makes spans and sends them to a collector. A nil Tracing makes none.
//
// It has none of OpenTelemetry's global state: a command's tracing is its own.
type Tracing struct {
	provider  *sdktrace.TracerProvider
	collector *collector
	version   string
}

// Start reads OpenTelemetry's variables with getenv. It returns nil where they name no collector.
// Where they ask for what cannot be had, it says so and returns nil too: that is no reason to
// deliver nothing. The spans tell the program's version.
func Start(ctx context.Context, getenv func(string) string, version string, log *slog.Logger) *Tracing {
	o, err := readOTLP(getenv, version)
	if err != nil {
		log.Error("tracing disabled", "error", err)
		return nil
	}
	if o == nil {
		return nil
	}
	c := newCollector(o, log)
	exporter, err := otlptrace.New(ctx, c)
	if err != nil {
		log.Error("tracing disabled", "error", err)
		return nil
	}
	log.Info("tracing enabled", "collector", o.url.Host)
	// The SDK reads the sampler, the sizes of batches and the limits of spans from the environment.
	return &Tracing{collector: c, version: version, provider: sdktrace.NewTracerProvider(
		sdktrace.WithResource(describeProcess(ctx, version, log)), sdktrace.WithBatcher(exporter),
	)}
}

// describeProcess returns the attributes that all spans share. The environment overrides them.
func describeProcess(ctx context.Context, version string, log *slog.Logger) *resource.Resource {
	host, _ := os.Hostname()
	r, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			attribute.String("service.name", "identify-worker"),
			attribute.String("service.version", version),
			attribute.String("host.name", host),
		),
		resource.WithFromEnv(),
	)
	if err != nil {
		log.Warn("OTEL_RESOURCE_ATTRIBUTES is invalid, ignoring part of it")
	}
	return r
}

// Tracer returns nil if t is nil.
func (t *Tracing) Tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer("github.com/identify-worker/identify-worker", trace.WithInstrumentationVersion(t.version))
}

// Close sends the remaining spans, for flushPatience at most. It does not wait for a collector
// that is down.
func (t *Tracing) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushPatience)
	defer cancel()
	close(t.collector.last)
	_ = t.provider.Shutdown(ctx) // whatever fails, the collector has told
	t.collector.close()
}

// A variable of OpenTelemetry's exporter is for traces alone, or for all signals.
const (
	otlpPrefix       = "OTEL_EXPORTER_OTLP_"
	otlpTracesPrefix = "OTEL_EXPORTER_OTLP_TRACES_"
)

// otlpEnvironment is where OpenTelemetry's variables are.
type otlpEnvironment func(string) string

// get reads a variable of the exporter. name is the one that was given.
func (env otlpEnvironment) get(variable string) (name, text string) {
	if text := strings.TrimSpace(env(otlpTracesPrefix + variable)); text != "" {
		return otlpTracesPrefix + variable, text
	}
	return otlpPrefix + variable, strings.TrimSpace(env(otlpPrefix + variable))
}

// readOTLP reads where to send spans. It returns nil if the environment names no collector. Its
// errors name variables and never contain their values: headers are secrets.
func readOTLP(env otlpEnvironment, version string) (*otlp, error) {
	_, endpoint := env.get("ENDPOINT")
	if endpoint == "" || strings.EqualFold(strings.TrimSpace(env("OTEL_SDK_DISABLED")), "true") {
		return nil, nil
	}
	switch exporter := strings.TrimSpace(env("OTEL_TRACES_EXPORTER")); exporter {
	case "", "otlp":
	case "none":
		return nil, nil
	default:
		return nil, errors.New("OTEL_TRACES_EXPORTER: must be otlp or none")
	}
	if name, protocol := env.get("PROTOCOL"); protocol != "" && protocol != "http/protobuf" {
		return nil, fmt.Errorf("%s: %.20q is not supported: set it to http/protobuf, and the endpoint to the collector's port for that, usually 4318", name, protocol)
	}
	return newOTLP(env, version)
}

// Probe asks the collector that the environment names whether it takes spans. host is empty if
// there is none, or if the variables are wrong, which err then says.
func Probe(ctx context.Context, getenv func(string) string, version string) (host string, err error) {
	o, err := readOTLP(getenv, version)
	if err != nil || o == nil {
		return "", err
	}
	c := newCollector(o, slog.New(slog.DiscardHandler))
	defer c.close()
	body, err := c.encode(nil)
	if err == nil {
		_, _, err = c.post(ctx, body)
	}
	return o.url.Host, err
}
