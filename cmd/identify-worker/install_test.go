package main

import (
	"archive/zip"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestInstall installs the command as others do, by its path and a version. A "replace" in
// go.mod would break that, and so would a file that the module needs and does not hold. The build tag is
// that of "make build", so that what it has compiled need not be compiled again.
func TestInstall(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("compiles the whole program")
	}
	const module, release = "github.com/identify-worker/identify-worker", "v1.2.3"
	proxy := t.TempDir()
	serveModule(t, filepath.Join("..", ".."), proxy, module, release)
	bin, cache := t.TempDir(), filepath.Join(t.TempDir(), "modules")
	install := exec.CommandContext(t.Context(), "go", "install", "-trimpath", "-modcacherw", "-tags", "nethttpomithttp2", module+"/cmd/identify-worker@"+release)
	install.Dir = bin // outside of any module
	install.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+bin, "GOMODCACHE="+cache, "GOSUMDB=off", "GOPROXY="+strings.Join([]string{
		"file://" + proxy, "file://" + filepath.Join(goEnv(t, "GOMODCACHE"), "cache", "download"), goEnv(t, "GOPROXY"),
	}, ","))
	if said, err := install.CombinedOutput(); err != nil {
		t.Fatalf("go install: %v\n%s", err, said)
	}
	said, err := exec.CommandContext(t.Context(), filepath.Join(bin, "identify-worker"), "version").Output()
	if err != nil || !strings.HasPrefix(string(said), "identify-worker "+release+" go1.") {
		t.Errorf("the installed program says %q, %v; want version %s", said, err, release)
	}
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	value, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(value))
}

// serveModule lays the module in root out as a proxy's folder.
func serveModule(t *testing.T, root, proxy, module, release string) {
	t.Helper()
	folder := filepath.Join(proxy, filepath.FromSlash(module), "@v")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(folder, 0o700))
	check(os.WriteFile(filepath.Join(folder, "list"), []byte(release+"\n"), 0o600))
	check(os.WriteFile(filepath.Join(folder, release+".info"), []byte(`{"Version":"`+release+`"}`), 0o600))
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	check(err)
	check(os.WriteFile(filepath.Join(folder, release+".mod"), mod, 0o600))
	archive, err := os.Create(filepath.Join(folder, release+".zip"))
	check(err)
	z := zip.NewWriter(archive)
	source := regexp.MustCompile(`^(cmd|queue|userpilot|worker)/|^(go\.mod|go\.sum|LICENSE)$`)
	check(fs.WalkDir(os.DirFS(root), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !source.MatchString(path) {
			return err
		}
		content, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return err
		}
		w, err := z.Create(module + "@" + release + "/" + path)
		if err == nil {
			_, err = w.Write(content)
		}
		return err
	}))
	check(z.Close())
	check(archive.Close())
}
