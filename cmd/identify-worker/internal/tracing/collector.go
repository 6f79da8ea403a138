package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// otlp says where spans go, and how: OTLP over HTTP, in protobuf.
type otlp struct {
	url     *url.URL
	header  http.Header // may hold secrets
	timeout time.Duration
	gzip    bool
	tls     *tls.Config
}

const defaultOTLPTimeout = 10 * time.Second

// newOTLP reads the variables of OpenTelemetry's exporter.
func newOTLP(env otlpEnvironment, version string) (*otlp, error) {
	o := &otlp{timeout: defaultOTLPTimeout, header: http.Header{}, tls: &tls.Config{MinVersion: tls.VersionTLS12}}
	for _, read := range []func(otlpEnvironment) error{o.readEndpoint, o.readHeaders, o.readManner, o.readTLS} {
		if err := read(env); err != nil {
			return nil, err
		}
	}
	o.header.Set("Content-Type", "application/x-protobuf")
	o.header.Set("User-Agent", "identify-worker/"+version)
	return o, nil
}

// readEndpoint reads the URL. The one for traces is used as it is; to the one for all signals the
// path for traces is added.
func (o *otlp) readEndpoint(env otlpEnvironment) error {
	name, text := env.get("ENDPOINT")
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("%s: is not a URL such as http://collector:4318", name)
	}
	if name == otlpPrefix+"ENDPOINT" {
		u = u.JoinPath("v1", "traces")
	}
	o.url = u
	return nil
}

// readHeaders reads name=value pairs, separated by commas and percent-encoded.
func (o *otlp) readHeaders(env otlpEnvironment) error {
	variable, text := env.get("HEADERS")
	for pair := range strings.SplitSeq(text, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, found := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !found || name == "" || err != nil || strings.ContainsAny(name+value, "\r\n") || strings.ContainsAny(name, " :") {
			return fmt.Errorf("%s: must be percent-encoded name=value pairs, separated by commas", variable)
		}
		o.header.Set(name, value)
	}
	return nil
}

// readManner reads the timeout and the compression.
func (o *otlp) readManner(env otlpEnvironment) error {
	if name, text := env.get("TIMEOUT"); text != "" {
		ms, err := strconv.Atoi(text)
		if err != nil || ms <= 0 {
			return fmt.Errorf("%s: must be milliseconds, above 0", name)
		}
		o.timeout = time.Duration(ms) * time.Millisecond
	}
	switch name, text := env.get("COMPRESSION"); text {
	case "", "none":
	case "gzip":
		o.gzip = true
		o.header.Set("Content-Encoding", "gzip")
	default:
		return fmt.Errorf("%s: must be gzip or none", name)
	}
	return nil
}

// readTLS reads the certificate files.
func (o *otlp) readTLS(env otlpEnvironment) error {
	if name, file := env.get("CERTIFICATE"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		o.tls.RootCAs = x509.NewCertPool()
		if !o.tls.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s: the file holds no certificate", name)
		}
	}
	name, file := env.get("CLIENT_CERTIFICATE")
	_, key := env.get("CLIENT_KEY")
	if file == "" && key == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(file, key)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	o.tls.Certificates = []tls.Certificate{pair}
	return nil
}

const (
	// The pauses between tries of a batch, whose time in all is the SDK's OTEL_BSP_EXPORT_TIMEOUT.
	firstUploadPause   = 500 * time.Millisecond
	longestUploadPause = 5 * time.Second
	// remindOfLoss is how often it is logged that spans are lost, while they are.
	remindOfLoss = 10 * time.Minute
	// maxCollectorAnswer is read of an answer, so that its connection can be used again.
	maxCollectorAnswer = 64 << 10
)

// collector sends spans to where otlp says. It implements [otlptrace.Client].
//
// OpenTelemetry's own client, otlptracehttp, would make the binary larger by 6.8 MB: it brings gRPC
// along, for a response type.
type collector struct {
	*otlp
	client *http.Client
	log    *slog.Logger
	last   chan struct{}   // closed when what is left has one try
	life   context.Context // ends with close
	end    context.CancelFunc

	mu   sync.Mutex
	lost int       // spans, since told
	told time.Time // when it was last logged that spans are lost; zero while all is well
}

func newCollector(o *otlp, log *slog.Logger) *collector {
	c := &collector{otlp: o, log: log, last: make(chan struct{}), client: &http.Client{
		// No proxy: HTTP_PROXY and the like are ignored, as everywhere here.
		Transport: &http.Transport{TLSClientConfig: o.tls, MaxIdleConns: 2, IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: o.timeout},
		Timeout:   o.timeout,
		// The headers go nowhere but where they were meant to.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

// close cancels requests in flight.
func (c *collector) close() {
	c.end()
	c.client.CloseIdleConnections()
}

// Start implements [otlptrace.Client].
func (c *collector) Start(context.Context) error { return nil }

// Stop implements [otlptrace.Client].
func (c *collector) Stop(context.Context) error { return nil }

// UploadTraces implements [otlptrace.Client]. It blocks until the collector has accepted or
// refused the spans, or ctx ends. It always returns nil: errors are logged here, because the SDK
// would print one for each batch.
func (c *collector) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	count := 0
	for _, r := range spans {
		for _, s := range r.GetScopeSpans() {
			count += len(s.GetSpans())
		}
	}
	body, err := c.encode(spans)
	if err == nil {
		err = c.sendUntilFinal(ctx, body)
	}
	c.report(count, err)
	return nil
}

// encode makes the body of a request. A TracesData has the same bytes as an
// ExportTraceServiceRequest.
func (c *collector) encode(spans []*tracepb.ResourceSpans) ([]byte, error) {
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil || !c.gzip {
		return body, err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err = w.Write(body)
	err = errors.Join(err, w.Close())
	return packed.Bytes(), err
}

// sendUntilFinal retries a batch until the collector gives a final answer or ctx ends. While the
// process shuts down it tries once.
func (c *collector) sendUntilFinal(ctx context.Context, body []byte) error {
	pauses := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(firstUploadPause), backoff.WithMaxInterval(longestUploadPause), backoff.WithMaxElapsedTime(0),
	)
	if over := errors.Join(ctx.Err(), c.life.Err()); over != nil {
		return c.explain(over)
	}
	for {
		passing, asked, err := c.post(ctx, body)
		if !passing {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-c.last:
			return err
		case <-time.After(max(pauses.NextBackOff(), asked)):
		}
	}
}

// post makes one request. passing reports whether a retry may succeed, after the pause that the
// collector asked for.
func (c *collector) post(ctx context.Context, body []byte) (passing bool, asked time.Duration, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url.String(), bytes.NewReader(body))
	if err != nil {
		return false, 0, errors.New("its URL cannot be requested")
	}
	r.Header = c.header
	answer, err := c.client.Do(r)
	if err != nil {
		return true, 0, c.explain(err)
	}
	defer func() { _ = answer.Body.Close() }()
	_, _ = io.CopyN(io.Discard, answer.Body, maxCollectorAnswer)
	switch status := answer.StatusCode; status {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		return false, 0, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, _ := strconv.Atoi(answer.Header.Get("Retry-After"))
		return true, time.Duration(min(max(0, seconds), 60)) * time.Second, fmt.Errorf("it answered %d", status)
	default:
		return false, 0, fmt.Errorf("it answered %d", status)
	}
}

// explain makes an error safe for a log: it contains neither the URL nor anything from the answer.
func (c *collector) explain(err error) error {
	var (
		op   *net.OpError
		cert *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &op):
		return op
	case errors.As(err, &cert):
		return cert
	case errors.Is(err, context.Canceled):
		return errors.New("it did not answer before shutdown")
	case os.IsTimeout(err):
		return fmt.Errorf("it did not answer within %v", c.timeout)
	}
	return errors.New("the connection broke, or the answer is not HTTP: is this the port of OTLP over HTTP, usually 4318? 4317 is for gRPC")
}

// report logs when spans are first lost, at intervals while they are, and when sending works
// again.
func (c *collector) report(spans int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch {
	case err == nil && c.told.IsZero():
	case err == nil:
		c.log.Info("sending traces again", "lost", c.lost)
		c.lost, c.told = 0, time.Time{}
	default:
		c.lost += spans
		if now.Sub(c.told) < remindOfLoss {
			return
		}
		c.told = now
		c.log.Warn("cannot send traces, dropping them; deliveries continue", "collector", c.url.Host, "lost", c.lost, "error", err)
	}
}
