// Package kubernetes tests the manifests in this folder: that an API server would accept them, and
// that they fit one another and the product. It is a module of its own, so that importing
// identify-worker does not bring in Kubernetes' libraries.
package kubernetes

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// manifests are the objects that an overlay renders to.
type manifests struct {
	namespace  *corev1.Namespace
	account    *corev1.ServiceAccount
	settings   *corev1.ConfigMap
	service    *corev1.Service
	deployment *appsv1.Deployment
	budget     *policyv1.PodDisruptionBudget
	policy     *networkingv1.NetworkPolicy
	scaling    *scaledObject // or nil, as the next ones
	monitor    *podMonitor
	rules      *prometheusRule
}

// overlays renders all overlays that are shipped.
func overlays(t *testing.T) map[string]*manifests {
	t.Helper()
	return map[string]*manifests{"small": render(t, "overlays/small"), "ha": render(t, "overlays/ha")}
}

// render runs kustomize on a folder and reads its output as an API server would with strict
// validation: an unknown or repeated field and a wrong type are errors.
func render(t *testing.T, folder string) *manifests {
	t.Helper()
	return renderIn(t, filesys.MakeFsOnDisk(), folder)
}

// withComponent renders a user's own overlay of the base and a component.
func withComponent(t *testing.T, component string) *manifests {
	t.Helper()
	files := filesys.MakeFsInMemory()
	err := fs.WalkDir(os.DirFS("."), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return files.WriteFile("/"+path, text)
	})
	if err != nil {
		t.Fatal(err)
	}
	overlay := fmt.Sprintf("resources: [../base]\ncomponents: [../components/%s]\n", component)
	if err := files.WriteFile("/own/kustomization.yaml", []byte(overlay)); err != nil {
		t.Fatal(err)
	}
	return renderIn(t, files, "/own")
}

func renderIn(t *testing.T, files filesys.FileSystem, folder string) *manifests {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, folder)
	if err != nil {
		t.Fatalf("kustomize %s: %v", folder, err)
	}
	var m manifests
	for _, resource := range made.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.add(resource.GetApiVersion(), resource.GetKind(), text); err != nil {
			t.Errorf("%s: %s %s: %v", folder, resource.GetKind(), resource.GetName(), err)
		}
		if broken := validation.IsDNS1123Subdomain(resource.GetName()); len(broken) > 0 {
			t.Errorf("%s: the name %s: %v", folder, resource.GetName(), broken)
		}
		if namespace := resource.GetNamespace(); namespace != "identify-worker" && resource.GetKind() != "Namespace" {
			t.Errorf("%s: %s %s is in the namespace %q", folder, resource.GetKind(), resource.GetName(), namespace)
		}
	}
	if m.namespace == nil || m.account == nil || m.settings == nil || m.service == nil || m.deployment == nil || m.budget == nil || m.policy == nil {
		t.Fatalf("%s: something is missing: %+v", folder, m)
	}
	return &m
}

// add reads one object. Each kind may occur once.
func (m *manifests) add(version, kind string, text []byte) error {
	switch version + " " + kind {
	case "v1 Namespace":
		return read(&m.namespace, text)
	case "v1 ServiceAccount":
		return read(&m.account, text)
	case "v1 ConfigMap":
		return read(&m.settings, text)
	case "v1 Service":
		return read(&m.service, text)
	case "apps/v1 Deployment":
		return read(&m.deployment, text)
	case "policy/v1 PodDisruptionBudget":
		return read(&m.budget, text)
	case "networking.k8s.io/v1 NetworkPolicy":
		return read(&m.policy, text)
	case "keda.sh/v1alpha1 ScaledObject":
		return read(&m.scaling, text)
	case "monitoring.coreos.com/v1 PodMonitor":
		return read(&m.monitor, text)
	case "monitoring.coreos.com/v1 PrometheusRule":
		return read(&m.rules, text)
	}
	return fmt.Errorf("%s %s is of no known kind", version, kind)
}

func read[T any](into **T, text []byte) error {
	if *into != nil {
		return errors.New("there are two")
	}
	*into = new(T)
	return yaml.UnmarshalStrict(text, *into)
}

// pod returns the specification of the pods.
func (m *manifests) pod() corev1.PodSpec { return m.deployment.Spec.Template.Spec }

func (m *manifests) container(t *testing.T) corev1.Container {
	t.Helper()
	if n := len(m.pod().Containers); n != 1 {
		t.Fatalf("there are %d containers, want 1", n)
	}
	return m.pod().Containers[0]
}

// environment returns the environment variables of the container.
func (m *manifests) environment(t *testing.T) map[string]string {
	t.Helper()
	env := map[string]string{}
	for _, from := range m.container(t).EnvFrom {
		if from.ConfigMapRef == nil || from.ConfigMapRef.Name != m.settings.Name {
			t.Fatalf("the environment is from %+v, want the ConfigMap %s", from, m.settings.Name)
		}
		maps.Copy(env, m.settings.Data)
	}
	for _, e := range m.container(t).Env {
		if e.ValueFrom != nil {
			t.Errorf("%s comes from elsewhere: secrets are files", e.Name)
		}
		env[e.Name] = e.Value
	}
	return env
}

// A manifest with a mistake must fail: otherwise these tests would prove nothing.
func TestStrictness(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"spec: {replicaz: 1}":               "unknown field",
		"spec: {replicas: one}":             "cannot unmarshal",
		"spec: {replicas: 1, replicas: 2}":  "already set",
		"spec: {template: {spec: {uid: 1}}": "did not find expected",
	} {
		var m manifests
		err := m.add("apps/v1", "Deployment", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestSelectors(t *testing.T) {
	t.Parallel()
	for name, m := range overlays(t) {
		labels := m.deployment.Spec.Template.Labels
		selectors := map[string]map[string]string{
			"Deployment":          m.deployment.Spec.Selector.MatchLabels,
			"Service":             m.service.Spec.Selector,
			"PodDisruptionBudget": m.budget.Spec.Selector.MatchLabels,
			"NetworkPolicy":       m.policy.Spec.PodSelector.MatchLabels,
		}
		for n, spread := range m.pod().TopologySpreadConstraints {
			selectors[fmt.Sprint("spread ", n)] = spread.LabelSelector.MatchLabels
		}
		for what, selector := range selectors {
			if len(selector) == 0 || !isPart(selector, labels) {
				t.Errorf("%s: the %s selects %v, and the pods have %v", name, what, selector, labels)
			}
		}
	}
}

func isPart(part, whole map[string]string) bool {
	for key, value := range part {
		if whole[key] != value {
			return false
		}
	}
	return true
}

func TestSpread(t *testing.T) {
	t.Parallel()
	for name, hard := range map[string]bool{"small": false, "ha": true} {
		var topologies []string
		for _, spread := range overlays(t)[name].pod().TopologySpreadConstraints {
			topologies = append(topologies, spread.TopologyKey)
			if spread.MaxSkew != 1 {
				t.Errorf("%s: the skew by %s is %d", name, spread.TopologyKey, spread.MaxSkew)
			}
			if isHard := spread.WhenUnsatisfiable == corev1.DoNotSchedule; isHard != (hard && spread.TopologyKey == corev1.LabelHostname) {
				t.Errorf("%s: %s is %s", name, spread.TopologyKey, spread.WhenUnsatisfiable)
			}
		}
		if want := []string{corev1.LabelTopologyZone, corev1.LabelHostname}; !slices.Equal(topologies, want) {
			t.Errorf("%s: it is spread by %v, want %v", name, topologies, want)
		}
	}
}

func TestDisruption(t *testing.T) {
	t.Parallel()
	for name, m := range overlays(t) {
		// A single replica must not prevent a node from being drained.
		if b := m.budget.Spec; b.MinAvailable != nil || b.MaxUnavailable == nil || b.MaxUnavailable.IntValue() != 1 {
			t.Errorf("%s: the budget is %+v", name, b)
		}
		update := m.deployment.Spec.Strategy.RollingUpdate
		if update == nil || update.MaxUnavailable.IntValue() != 0 || update.MaxSurge.IntValue() != 1 {
			t.Errorf("%s: the rolling update is %+v", name, update)
		}
	}
}

// TestNetworkPolicy checks that a worker can reach a closed list of ports only.
func TestNetworkPolicy(t *testing.T) {
	t.Parallel()
	for name, m := range overlays(t) {
		p := m.policy.Spec
		if want := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}; !slices.Equal(p.PolicyTypes, want) {
			t.Errorf("%s: it is about %v", name, p.PolicyTypes)
		}
		var reached []string
		for _, rule := range p.Egress {
			if len(rule.To) == 0 || len(rule.Ports) == 0 {
				t.Errorf("%s: %+v has no bounds", name, rule)
			}
			for _, port := range rule.Ports {
				reached = append(reached, port.Port.String())
			}
			for _, to := range rule.To {
				if block := to.IPBlock; block != nil && (block.CIDR == "0.0.0.0/0" || block.CIDR == "::/0") && len(block.Except) == 0 {
					t.Errorf("%s: the cluster's own network is open", name)
				}
			}
		}
		if want := []string{"53", "53", "5353", "5353", "4222", "443"}; !slices.Equal(reached, want) {
			t.Errorf("%s: the ports %v can be reached, want %v", name, reached, want)
		}
		if len(p.Ingress) != 1 || len(p.Ingress[0].From) != 1 || len(p.Ingress[0].Ports) != 1 || p.Ingress[0].Ports[0].Port.String() != "http" {
			t.Errorf("%s: it is reached by %+v", name, p.Ingress)
		}
	}
}

// destination is where a worker wants to connect to: an address, or a pod in a namespace.
type destination struct {
	address, namespace, app string
	port                    string
	protocol                corev1.Protocol
}

// allowed reports whether a rule of a policy allows the traffic, as a network plugin would decide.
func (d destination) allowed(t *testing.T, rule networkingv1.NetworkPolicyEgressRule) bool {
	t.Helper()
	port := func(p networkingv1.NetworkPolicyPort) bool {
		return p.Port.String() == d.port && (p.Protocol == nil && d.protocol == corev1.ProtocolTCP || p.Protocol != nil && *p.Protocol == d.protocol)
	}
	peer := func(p networkingv1.NetworkPolicyPeer) bool {
		if p.IPBlock != nil {
			within := func(block string) bool {
				return netip.MustParsePrefix(block).Contains(netip.MustParseAddr(d.address))
			}
			return d.address != "" && within(p.IPBlock.CIDR) && !slices.ContainsFunc(p.IPBlock.Except, within)
		}
		return d.address == "" && selects(t, p.NamespaceSelector, map[string]string{corev1.LabelMetadataName: d.namespace}) &&
			(p.PodSelector == nil || selects(t, p.PodSelector, map[string]string{"app.kubernetes.io/name": d.app}))
	}
	return slices.ContainsFunc(rule.To, peer) && slices.ContainsFunc(rule.Ports, port)
}

func selects(t *testing.T, selector *metav1.LabelSelector, set labels.Set) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(set)
}

// TestEgress checks what a worker reaches: each kind of DNS, NATS and Userpilot, and no more.
func TestEgress(t *testing.T) {
	t.Parallel()
	const udp, tcp = corev1.ProtocolUDP, corev1.ProtocolTCP
	for name, m := range overlays(t) {
		for _, test := range []struct {
			to      destination
			allowed bool
		}{
			{destination{namespace: "kube-system", port: "53", protocol: udp}, true},
			{destination{namespace: "kube-system", port: "53", protocol: tcp}, true},
			{destination{address: "169.254.20.10", port: "53", protocol: udp}, true},
			{destination{address: "169.254.20.10", port: "53", protocol: tcp}, true},
			{destination{namespace: "openshift-dns", port: "5353", protocol: udp}, true},
			{destination{namespace: "openshift-dns", port: "5353", protocol: tcp}, true},
			{destination{namespace: "nats", app: "nats", port: "4222", protocol: tcp}, true},
			{destination{address: "203.0.113.1", port: "443", protocol: tcp}, true},
			{destination{address: "2001:db8::1", port: "443", protocol: tcp}, true},

			{destination{namespace: "elsewhere", port: "53", protocol: udp}, false},
			{destination{namespace: "elsewhere", port: "5353", protocol: udp}, false},
			{destination{address: "203.0.113.1", port: "53", protocol: udp}, false},
			{destination{address: "169.254.20.10", port: "443", protocol: tcp}, false},
			{destination{address: "169.254.169.254", port: "53", protocol: udp}, false}, // a cloud's metadata and DNS
			{destination{address: "169.254.169.254", port: "80", protocol: tcp}, false},
			{destination{address: "10.0.0.1", port: "443", protocol: tcp}, false},
			{destination{namespace: "nats", app: "other", port: "4222", protocol: tcp}, false},
		} {
			if is := slices.ContainsFunc(m.policy.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return test.to.allowed(t, r) }); is != test.allowed {
				t.Errorf("%s: %+v is allowed: %v, want %v", name, test.to, is, test.allowed)
			}
		}
	}
}
