package kubernetes

import (
	"flag"
	"maps"
	"os"
	"reflect"
	"regexp"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite what is generated")

// custom is what objects of the Prometheus operator and of KEDA have in common.
type custom struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name, Namespace string
		Labels          map[string]string
	} `json:"metadata"`
}

// podMonitor is a PodMonitor with the fields used here.
type podMonitor struct {
	custom
	Spec struct {
		JobLabel  string                  `json:"jobLabel"`
		Selector  metav1.LabelSelector    `json:"selector"`
		Endpoints []struct{ Port string } `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// prometheusRule is a PrometheusRule. Its specification is what Prometheus reads from a file.
type prometheusRule struct {
	custom
	Spec map[string]any `json:"spec"`
}

// TestPodMonitor checks that all replicas are scraped, as one job.
func TestPodMonitor(t *testing.T) {
	t.Parallel()
	m := withComponent(t, "prometheus-operator")
	if m.monitor == nil {
		t.Fatal("there is no PodMonitor")
	}
	s, labels := m.monitor.Spec, m.deployment.Spec.Template.Labels
	if !maps.Equal(s.Selector.MatchLabels, m.deployment.Spec.Selector.MatchLabels) || labels[s.JobLabel] != "identify-worker" {
		t.Errorf("it selects %v, and the job is %q", s.Selector, labels[s.JobLabel])
	}
	if len(s.Endpoints) != 1 || s.Endpoints[0].Port != m.container(t).Ports[0].Name {
		t.Errorf("it scrapes %+v", s.Endpoints)
	}
}

// The head of the generated file. Kustomize cannot read a file into an object.
const ruleHead = `# Generated from deployments/prometheus/alerts.yaml. To do it again:
#   go -C deployments/kubernetes test -run PrometheusRule -update
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: identify-worker
spec:
`

// TestPrometheusRule checks that the operator's rules are those of alerts.yaml.
func TestPrometheusRule(t *testing.T) {
	t.Parallel()
	const path = "components/prometheus-operator/prometheusrule.yaml"
	alerts := file(t, "../prometheus/alerts.yaml")
	generated := ruleHead + string(regexp.MustCompile(`(?m)^.`).ReplaceAll(alerts, []byte("  $0")))
	if *update {
		if err := os.WriteFile(path, []byte(generated), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if string(file(t, path)) != generated {
		t.Errorf("%s differs from alerts.yaml; to rewrite it: go -C deployments/kubernetes test -run PrometheusRule -update", path)
	}
	var want map[string]any
	if err := yaml.Unmarshal(alerts, &want); err != nil {
		t.Fatal(err)
	}
	if m := withComponent(t, "prometheus-operator"); m.rules == nil || !reflect.DeepEqual(m.rules.Spec, want) {
		t.Error("kustomize renders other rules than those of alerts.yaml")
	}
}
