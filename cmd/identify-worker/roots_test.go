package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// TestRootsAreInTheBinary runs itself again where the system has no certificates, as in an
// image from scratch: the authorities that the web trusts are trusted all the same.
func TestRootsAreInTheBinary(t *testing.T) {
	t.Parallel()
	if os.Getenv("TEST_WITHOUT_ROOTS") == "" {
		empty := filepath.Join(t.TempDir(), "empty.pem")
		if err := os.WriteFile(empty, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		again.Env = append(os.Environ(), "TEST_WITHOUT_ROOTS=1", "SSL_CERT_FILE="+empty, "SSL_CERT_DIR="+filepath.Dir(empty))
		if said, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, said)
		}
		return
	}
	for root := range bundle.Roots() {
		authority, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if now := time.Now(); root.Constraint != nil || now.After(authority.NotAfter) || now.Before(authority.NotBefore) {
			continue
		}
		if _, err := authority.Verify(x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s is not trusted: %v", authority.Subject, err)
		}
		return
	}
	t.Fatal("the bundle holds no authority")
}
