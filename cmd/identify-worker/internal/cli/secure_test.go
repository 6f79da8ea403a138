//go:build !noembed

package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// authority issues certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	dir  string
	file string // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.file, _ = a.issue("ca", func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	return a
}

// issue writes a certificate and its key. The first is the authority's own.
func (a *authority) issue(name string, change func(*x509.Certificate)) (certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
	}
	change(cert)
	if a.key == nil {
		a.cert, a.key = cert, key
	}
	signed, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	a.must(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	a.must(err)
	return a.write(name+".crt", "CERTIFICATE", signed), a.write(name+".key", "PRIVATE KEY", private)
}

func (a *authority) write(name, kind string, der []byte) (path string) {
	a.t.Helper()
	path = filepath.Join(a.dir, name)
	a.must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}

func (a *authority) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func asItIs(*x509.Certificate) {}

// operator issues credentials, as "nsc" does.
type operator struct {
	t            *testing.T
	key, account nkeys.KeyPair
	config       string // that a server trusts it by
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	o := &operator{t: t}
	var err error
	o.key, err = nkeys.CreateOperator()
	o.must(err)
	o.account, err = nkeys.CreateAccount()
	o.must(err)
	account := jwt.NewAccountClaims(o.public(o.account))
	account.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
	system, err := nkeys.CreateAccount() // a server with JetStream wants one
	o.must(err)
	o.config = fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }\n",
		o.sign(jwt.NewOperatorClaims(o.public(o.key))), o.public(system),
		o.public(system), o.sign(jwt.NewAccountClaims(o.public(system))), o.public(o.account), o.sign(account))
	return o
}

func (o *operator) sign(claims jwt.Claims) string {
	o.t.Helper()
	signed, err := claims.Encode(o.key)
	o.must(err)
	return signed
}

// issue writes a user's credentials, good until an instant if it is not 0.
func (o *operator) issue(path string, until time.Time) {
	o.t.Helper()
	key, err := nkeys.CreateUser()
	o.must(err)
	user := jwt.NewUserClaims(o.public(key))
	if !until.IsZero() {
		user.Expires = until.Unix()
	}
	signed, err := user.Encode(o.account)
	o.must(err)
	seed, err := key.Seed()
	o.must(err)
	text, err := jwt.FormatUserConfig(signed, seed)
	o.must(err)
	// Put in its place whole, as whoever rolls credentials should.
	o.must(os.WriteFile(path+".new", text, 0o600))
	o.must(os.Rename(path+".new", path))
}

func (o *operator) public(key nkeys.KeyPair) string {
	o.t.Helper()
	name, err := key.PublicKey()
	o.must(err)
	return name
}

func (o *operator) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// serve starts a server of a configuration and returns its address.
func serve(t *testing.T, config string) (address string) {
	t.Helper()
	return serveNATS(t, config).Addr().String()
}

func serveNATS(t *testing.T, config string) *natsserver.Server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server.conf")
	if err := os.WriteFile(path, []byte("listen: 127.0.0.1:-1\n"+config), 0o600); err != nil {
		t.Fatal(err)
	}
	options, err := natsserver.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	options.NoLog, options.NoSigs = true, true
	n, err := natsserver.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	t.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	if !n.ReadyForConnections(patience) {
		t.Fatal("the server does not start")
	}
	return n
}

// tlsConfig is what deployments/nats ships, with the test's files.
func tlsConfig(t *testing.T, cert, key, ca string) string {
	t.Helper()
	text, err := os.ReadFile("../../../../deployments/nats/tls.conf")
	if err != nil {
		t.Fatal(err)
	}
	config := string(text)
	for path, file := range map[string]string{"tls.crt": cert, "tls.key": key, "ca.crt": ca} {
		shipped := "/etc/nats/tls/" + path
		if !strings.Contains(config, shipped) {
			t.Fatalf("tls.conf does not name %s", shipped)
		}
		config = strings.Replace(config, shipped, `"`+file+`"`, 1)
	}
	return config
}

// secured is a server with TLS and credentials, and what a client needs to get in.
type secured struct {
	ours     *authority
	operator *operator
	config   string // of the server, without JetStream
	env      map[string]string
}

func newSecured(t *testing.T) *secured {
	t.Helper()
	s := &secured{ours: newAuthority(t), operator: newOperator(t)}
	cert, key := s.ours.issue("server", asItIs)
	s.config = s.operator.config + tlsConfig(t, cert, key, s.ours.file)
	own, ownKey := s.ours.issue("client", asItIs)
	creds := filepath.Join(t.TempDir(), "user.creds")
	s.operator.issue(creds, time.Time{})
	s.env = map[string]string{"NATS_CREDS": creds, "IDENTIFY_NATS_CA": s.ours.file, "IDENTIFY_NATS_CERT": own, "IDENTIFY_NATS_KEY": ownKey}
	return s
}

func withJetStream(t *testing.T, config string) string {
	t.Helper()
	return fmt.Sprintf("jetstream { store_dir: %q }\n%s", t.TempDir(), config)
}

// Every command goes over TLS, with a certificate and with credentials.
func TestTLSAndCredentials(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	s.env["NATS_URL"] = serve(t, withJetStream(t, s.config))
	f := newFixtureAt(t, s.env)
	f.status = func([]byte) int { return http.StatusUnprocessableEntity }
	f.run(`{"user_id":"ann","metadata":{"plan":"gold"}}`, "publish")
	f.work(func() { f.awaitLog("dead letter") })
	for _, words := range []string{"status", "dlq stats", "dlq ls", "dlq export", "dlq history", "dlq replay --all --yes", "dlq purge --user ann --yes"} {
		f.run("", strings.Fields(words)...)
	}
	var stdout, stderr bytes.Buffer
	run(t.Context(), []string{"doctor"}, strings.NewReader(""), &stdout, &stderr, func(name string) string { return f.env[name] })
	if text := strings.Join(strings.Fields(stdout.String()), " "); !strings.Contains(text, "ok nats_tls TLS 1.3") {
		t.Errorf("doctor says\n%s%s", stdout.String(), stderr.String())
	}
}

// What is missing or wrong is named with the way out, in one line, and is not waited for.
func TestWhyNATSIsNotReached(t *testing.T) {
	t.Parallel()
	s, theirs := newSecured(t), newAuthority(t)
	address := serve(t, s.config)
	other, otherKey := theirs.issue("client", asItIs)
	old := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }
	elsewhere := func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} }
	ownOld, ownOldKey := s.ours.issue("old", old)
	stranger := filepath.Join(t.TempDir(), "stranger.creds")
	newOperator(t).issue(stranger, time.Time{})
	with := func(change func(*x509.Certificate)) (address string) {
		cert, key := s.ours.issue("server", change)
		return serve(t, s.operator.config+tlsConfig(t, cert, key, s.ours.file))
	}
	for name, test := range map[string]struct {
		address string
		env     map[string]string
		want    string
	}{
		"no authority":         {address, map[string]string{"IDENTIFY_NATS_CA": ""}, "--nats-ca names the authorities that are trusted"},
		"another authority":    {address, map[string]string{"IDENTIFY_NATS_CA": theirs.file}, "--nats-ca names the authorities that are trusted"},
		"no certificate":       {address, map[string]string{"IDENTIFY_NATS_CERT": "", "IDENTIFY_NATS_KEY": ""}, "see --nats-cert and --nats-key"},
		"another's":            {address, map[string]string{"IDENTIFY_NATS_CERT": other, "IDENTIFY_NATS_KEY": otherKey}, "see --nats-cert and --nats-key"},
		"an old one":           {address, map[string]string{"IDENTIFY_NATS_CERT": ownOld, "IDENTIFY_NATS_KEY": ownOldKey}, "see --nats-cert and --nats-key"},
		"no credentials":       {address, map[string]string{"NATS_CREDS": ""}, "see --nats-creds"},
		"a stranger's":         {address, map[string]string{"NATS_CREDS": stranger}, "see --nats-creds"},
		"the server's is old":  {with(old), nil, "the server's certificate must be renewed"},
		"it is for another":    {with(elsewhere), nil, "the server's certificate is not for the host in --nats-url"},
		"the server has none":  {serve(t, s.operator.config), nil, "the server does not support TLS: see --nats-ca"},
		"and TLS is asked for": {"tls://" + serve(t, ""), map[string]string{"IDENTIFY_NATS_CA": ""}, "the server does not support TLS: see --nats-ca"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := maps.Clone(s.env)
			env["NATS_URL"] = test.address
			maps.Copy(env, test.env)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var stdout, stderr bytes.Buffer
			status := run(ctx, []string{"setup", "--wait", "forever"}, strings.NewReader(""), &stdout, &stderr, func(name string) string { return env[name] })
			lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
			if last := lines[len(lines)-1]; status != exitFailed || !strings.Contains(last, test.want) || ctx.Err() != nil {
				t.Errorf("status %d, %v, and it says\n%s\nwant %s", status, ctx.Err(), stderr.String(), test.want)
			}
		})
	}
}

// Credentials are rolled by writing the file anew: a worker whose old ones expire connects with the
// new ones however long that takes, goes on, and says each reason once.
func TestCredentialsAreRolled(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	server := serveNATS(t, withJetStream(t, s.config))
	s.env["NATS_URL"] = server.Addr().String()
	f := newFixtureAt(t, s.env)
	lasting := filepath.Join(t.TempDir(), "lasting.creds")
	s.operator.issue(lasting, time.Time{})
	creds := s.env["NATS_CREDS"]
	log := f.work(func() {
		f.env["NATS_CREDS"] = lasting
		publish := func() {
			f.run(`{"user_id":"ann","metadata":{"plan":"gold"}}`, "publish")
			f.call()
		}
		publish()
		// A connection lasts as long as its credentials, so the worker needs a new one within that time.
		s.operator.issue(creds, time.Now().Add(4*time.Second))
		disconnect(t, server)
		f.awaitLog("authorization violation (see --nats-creds)")
		before, looks := connections(t, server), uint64(0)
		tries := poll(func() bool {
			f.run("", "status") // a connection, too
			looks++
			return connections(t, server) >= before+looks+4
		})
		if !tries {
			t.Fatal("the worker has given up")
		}
		s.operator.issue(creds, time.Time{})
		publish()
	})
	if strings.Count(log, "expired (see --nats-creds)") != 1 || strings.Count(log, "violation (") != 1 {
		t.Errorf("the worker logged\n%s", log)
	}
}

// disconnect ends all connections. Clients make new ones.
func disconnect(t *testing.T, n *natsserver.Server) {
	t.Helper()
	open, err := n.Connz(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range open.Conns {
		if err := n.DisconnectClientByID(c.Cid); err != nil {
			t.Error(err)
		}
	}
}

// connections counts those that were ever made, refused ones too.
func connections(t *testing.T, n *natsserver.Server) uint64 {
	t.Helper()
	v, err := n.Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	return v.TotalConnections
}
