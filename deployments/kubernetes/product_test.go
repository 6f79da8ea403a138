package kubernetes

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// program builds the product once, with the flags of "make build" to share its build cache, into a
// folder that TestMain removes.
var (
	folder  string
	program = sync.OnceValues(func() (path string, err error) {
		if folder, err = os.MkdirTemp("", "identify-worker-"); err != nil {
			return "", err
		}
		path = filepath.Join(folder, "identify-worker")
		build := exec.Command("go", "build", "-C", "../..", "-tags", "nethttpomithttp2", "-trimpath", "-o", path, "./cmd/identify-worker")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build: %w\n%s", err, said)
		}
		return path, nil
	})
)

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

// help returns what a command prints with --help.
func help(t *testing.T, command string) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	text, err := exec.CommandContext(t.Context(), path, command, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// byDefault returns the default of a flag of "work".
func byDefault(t *testing.T, flag string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^\s+--` + flag + ` .*\(default ([^)]+)\)$`).FindStringSubmatch(help(t, "work"))
	if m == nil {
		t.Fatalf("--%s has no default", flag)
	}
	return m[1]
}

// setting returns a flag's value in the manifests, or its default.
func (m *manifests) setting(t *testing.T, flag string) string {
	t.Helper()
	if value, ok := m.environment(t)["IDENTIFY_"+strings.ToUpper(flag)]; ok {
		return value
	}
	return byDefault(t, flag)
}

// TestSettings starts the product with the manifests' settings. Nothing listens where NATS should
// be, so it fails, but it must not fail because of a setting.
func TestSettings(t *testing.T) {
	t.Parallel()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	known := help(t, "work")
	key := filepath.Join(t.TempDir(), "api-key")
	if err := os.WriteFile(key, []byte("k"), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(m *manifests, more ...string) (int, string) {
		cmd := exec.CommandContext(t.Context(), path, m.container(t).Args...)
		for name, value := range m.environment(t) {
			if !strings.Contains(known, "[$"+name+"]") {
				t.Errorf("no flag has the variable %s", name)
			}
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		cmd.Env = append(cmd.Env, "USERPILOT_API_KEY_FILE="+key, "NATS_URL=nats://127.0.0.1:1", "IDENTIFY_WAIT=0")
		cmd.Env = append(cmd.Env, more...)
		said, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return exit.ExitCode(), string(said)
		}
		return 0, string(said)
	}
	for name, m := range overlays(t) {
		if status, said := start(m); status != 1 || !strings.Contains(said, "127.0.0.1:1") {
			t.Errorf("%s: it ends with %d, and says %s", name, status, said)
		}
		if status, said := start(m, "IDENTIFY_RATE=much"); status != 2 {
			t.Errorf("a wrong rate is accepted: %d, %s", status, said)
		}
	}
}

// file returns the contents of a file of the repository.
func file(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.FromSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// seconds returns a constant of the product, in seconds.
func seconds(t *testing.T, path, name string) time.Duration {
	t.Helper()
	m := regexp.MustCompile(`\b` + name + `\s*=\s*(\d+) \* time\.Second`).FindSubmatch(file(t, path))
	if m == nil {
		t.Fatalf("%s holds no %s in seconds", path, name)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(n) * time.Second
}

// TestGrace does the sum in the Deployment's comment.
func TestGrace(t *testing.T) {
	t.Parallel()
	settle, call := seconds(t, "../../queue/fleet/settlement.go", "settleTimeout"), seconds(t, "../../queue/internal/jsapi/conn.go", "CallTimeout")
	for name, m := range overlays(t) {
		timeout, err := time.ParseDuration(m.setting(t, "timeout"))
		if err != nil {
			t.Fatal(err)
		}
		terms := []struct {
			what string
			time time.Duration
		}{
			{"finishing the calls in flight", timeout},
			{"settling them", settle + settle/5}, // see watch in queue/fleet/assignment.go
			{"releasing the partitions", call},
			{"leaving the fleet", call},
			{"stopping the HTTP listener", time.Second},
		}
		var sum time.Duration
		comment := file(t, "base/deployment.yaml")
		for _, term := range terms {
			sum += term.time
			if line := fmt.Sprintf("%4.0f s  %s", term.time.Seconds(), term.what); !bytes.Contains(comment, []byte(line)) {
				t.Errorf("%s: the comment does not say %q", name, line)
			}
		}
		grace := time.Duration(*m.pod().TerminationGracePeriodSeconds) * time.Second
		if grace < sum+10*time.Second {
			t.Errorf("%s: the grace of %v is less than %v and 10s", name, grace, sum)
		}
		if line := fmt.Sprintf("stop_grace_period: %.0fs", grace.Seconds()); !bytes.Contains(file(t, "../compose.yaml"), []byte(line)) {
			t.Errorf("compose.yaml does not say %q", line)
		}
	}
}

// TestResources compares the memory with the process's own limit: see limitMemory in cmd.
func TestResources(t *testing.T) {
	t.Parallel()
	const measured, floor = 103 << 20, 96 << 20
	for name, m := range overlays(t) {
		waiting, err := resource.ParseQuantity(strings.TrimSuffix(m.setting(t, "memory"), "B"))
		if err != nil {
			t.Fatal(err)
		}
		resources := m.container(t).Resources
		if heap := waiting.Value()*3/2 + floor; resources.Limits.Memory().Value() < heap+heap/4 {
			t.Errorf("%s: the limit of %v is too near to Go's own of %d MiB", name, resources.Limits.Memory(), heap>>20)
		}
		if resources.Requests.Memory().Value() < measured {
			t.Errorf("%s: it asks for %v, and 103 MiB were measured", name, resources.Requests.Memory())
		}
		if _, limited := resources.Limits["cpu"]; limited || resources.Requests.Cpu().IsZero() {
			t.Errorf("%s: CPU: %+v", name, resources)
		}
	}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	for name, m := range overlays(t) {
		c := m.container(t)
		_, port, _ := strings.Cut(m.environment(t)["IDENTIFY_LISTEN"], ":")
		if len(c.Ports) != 1 || c.Ports[0].Name != "http" || strconv.Itoa(int(c.Ports[0].ContainerPort)) != port {
			t.Errorf("%s: it listens on %s, and its ports are %+v", name, port, c.Ports)
		}
		for _, probe := range []struct{ path, want string }{
			{c.LivenessProbe.HTTPGet.Path, "/livez"}, {c.ReadinessProbe.HTTPGet.Path, "/readyz"},
			{c.LivenessProbe.HTTPGet.Port.String(), "http"}, {c.ReadinessProbe.HTTPGet.Port.String(), "http"},
			{m.service.Spec.Ports[0].TargetPort.String(), "http"}, {m.deployment.Spec.Template.Annotations["prometheus.io/port"], port},
		} {
			if probe.path != probe.want {
				t.Errorf("%s: a probe or a scrape goes to %s, want %s", name, probe.path, probe.want)
			}
		}
	}
}

// scaledObject is KEDA's ScaledObject, keda.sh/v1alpha1, with the fields used here.
type scaledObject struct {
	custom
	Spec struct {
		ScaleTargetRef  struct{ Name string } `json:"scaleTargetRef"`
		MinReplicaCount int                   `json:"minReplicaCount"`
		MaxReplicaCount int                   `json:"maxReplicaCount"`
		PollingInterval int                   `json:"pollingInterval"`
		Fallback        any                   `json:"fallback"`
		Advanced        struct {
			Config struct {
				Behavior autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior"`
			} `json:"horizontalPodAutoscalerConfig"`
		} `json:"advanced"`
		Triggers []struct {
			Type       string            `json:"type"`
			MetricType string            `json:"metricType"`
			Metadata   map[string]string `json:"metadata"`
		} `json:"triggers"`
	} `json:"spec"`
}

// TestScaling checks that the fleet scales on the number of replicas that the workers want, never
// on the backlog, and that in the overlay with KEDA only KEDA sets the number of replicas.
func TestScaling(t *testing.T) {
	t.Parallel()
	all := overlays(t)
	if small := all["small"]; small.scaling != nil || *small.deployment.Spec.Replicas != 1 || small.setting(t, "replicas") != "1" {
		t.Errorf("small scales, or is not small: %+v", small.deployment.Spec.Replicas)
	}
	ha := all["ha"]
	if ha.scaling == nil || ha.deployment.Spec.Replicas != nil || ha.setting(t, "replicas") != "3" {
		t.Fatalf("ha has %v replicas, and the scaling %+v", ha.deployment.Spec.Replicas, ha.scaling)
	}
	s := ha.scaling.Spec
	partitions, err := strconv.Atoi(ha.setting(t, "partitions"))
	if err != nil {
		t.Fatal(err)
	}
	if s.ScaleTargetRef.Name != ha.deployment.Name || s.MinReplicaCount != 2 || s.MaxReplicaCount != partitions+1 {
		t.Errorf("it scales %+v", s)
	}
	if len(s.Triggers) != 1 {
		t.Fatalf("there are %d triggers, want 1", len(s.Triggers))
	}
	trigger := s.Triggers[0]
	if trigger.Type != "prometheus" || trigger.MetricType != "AverageValue" || trigger.Metadata["threshold"] != "1" || trigger.Metadata["query"] != "max(identify_replicas_wanted)" {
		t.Errorf("the trigger is %+v", trigger)
	}
	// No data is not zero work. Without a fallback, KEDA passes the error on, and the autoscaler of
	// Kubernetes changes nothing.
	if trigger.Metadata["ignoreNullValues"] != "false" || s.Fallback != nil {
		t.Errorf("without data, it scales: ignoreNullValues is %q, and the fallback %v", trigger.Metadata["ignoreNullValues"], s.Fallback)
	}
	if !bytes.Contains(file(t, "../../worker/metrics.go"), []byte(`desc("replicas_wanted"`)) {
		t.Error("the worker has no metric identify_replicas_wanted")
	}
}
