package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Compose, the other way to deploy, is tested by running it, in the folder integration. These tests
// cover what a run without the images of Prometheus and Grafana does not show.

// composed is the part of compose.yaml that these tests check.
type composed struct {
	Services map[string]struct {
		Image       string
		Environment map[string]string
		Volumes     []string
	}
	Volumes map[string]any
}

func compose(t *testing.T) composed {
	t.Helper()
	var c composed
	readYAML(t, "../compose.yaml", &c)
	return c
}

func readYAML(t *testing.T, path string, value any) {
	t.Helper()
	if err := yaml.Unmarshal(file(t, path), value); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func TestComposeImages(t *testing.T) {
	t.Parallel()
	c := compose(t)
	_, version, _ := strings.Cut(string(file(t, "../../go.mod")), "github.com/nats-io/nats-server/v2 v")
	version, _, _ = strings.Cut(version, "\n")
	if want := "${NATS_IMAGE:-nats:" + version + "}"; c.Services["nats-1"].Image != want {
		t.Errorf("the NATS servers are %s, want %s as in go.mod", c.Services["nats-1"].Image, want)
	}
	tag := regexp.MustCompile(`^\$\{[A-Z]+_IMAGE:-[a-z/-]+:([^:}]+)}$`)
	for name, service := range c.Services {
		m := tag.FindStringSubmatch(service.Image)
		if own := name == "worker" || name == "userpilot"; len(m) != 2 || (m[1] == "latest") != own {
			t.Errorf("the image of %s cannot be replaced, or is not pinned: %s", name, service.Image)
		}
	}
}

func TestComposeSettings(t *testing.T) {
	t.Parallel()
	for service, command := range map[string]string{"worker": "work", "userpilot": "fake-userpilot"} {
		known := help(t, command)
		for variable := range compose(t).Services[service].Environment {
			stands := "[$" + variable + "]" // in the help of a flag
			if strings.HasPrefix(variable, "OTEL_") {
				stands = variable
			}
			if variable != "USERPILOT_API_KEY" && !strings.Contains(known, stands) {
				t.Errorf("no flag of %s has the variable %s", command, variable)
			}
		}
	}
}

// The server of 2.11 is strict only if its configuration says so.
func TestServersAreStrict(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"../nats/server.conf", "../nats/cluster.conf"} {
		if !regexp.MustCompile(`(?m)^jetstream \{\n(.*\n)*?  strict: true\b`).Match(file(t, path)) {
			t.Errorf("%s: JetStream is not strict", path)
		}
	}
}

// mounted returns the path of a repository's file or folder in a service.
func (c composed) mounted(service, path string) string {
	for _, volume := range c.Services[service].Volumes {
		from, to, _ := strings.Cut(strings.TrimSuffix(volume, ":ro"), ":")
		if within, ok := strings.CutPrefix(path, from); ok {
			return to + within
		}
	}
	return ""
}

// chosenSource returns the type of data source that the dashboard lets its reader choose.
func chosenSource(t *testing.T) string {
	t.Helper()
	var dashboard struct {
		Templating struct {
			List []struct {
				Name, Type string
				Query      any // an object for variables of other types
			}
		}
	}
	if err := json.Unmarshal(file(t, "../grafana/dashboard.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, v := range dashboard.Templating.List {
		if v.Name == "datasource" && v.Type == "datasource" {
			return fmt.Sprint(v.Query)
		}
	}
	return ""
}

func TestComposeFiles(t *testing.T) {
	t.Parallel()
	c := compose(t)
	for name, service := range c.Services {
		for _, volume := range service.Volumes {
			from, _, _ := strings.Cut(volume, ":")
			_, declared := c.Volumes[from]
			_, err := os.Stat(filepath.Join("..", from))
			if isFile := strings.HasPrefix(from, "./"); isFile && (err != nil || !strings.HasSuffix(volume, ":ro")) || !isFile && !declared {
				t.Errorf("%s: the volume %s is not there, or can be written to", name, volume)
			}
		}
	}

	var prometheus struct {
		RuleFiles []string `json:"rule_files"`
		Scrapes   []struct {
			DNS []struct{ Names []string } `json:"dns_sd_configs"`
		} `json:"scrape_configs"`
	}
	readYAML(t, "../prometheus/prometheus.yaml", &prometheus)
	if !slices.Equal(prometheus.RuleFiles, []string{"alerts.yaml"}) || c.mounted("prometheus", "./prometheus/alerts.yaml") != "/etc/prometheus/alerts.yaml" {
		t.Errorf("Prometheus reads the rules %v", prometheus.RuleFiles)
	}
	if names := prometheus.Scrapes[0].DNS[0].Names; !slices.Equal(names, []string{"worker"}) {
		t.Errorf("Prometheus scrapes %v", names)
	}

	// The dashboard lets its reader choose among sources of a type, and starts with the default
	// one.
	var sources struct {
		Datasources []struct {
			Type, URL string
			IsDefault bool
		}
	}
	readYAML(t, "../grafana/provisioning/datasources/prometheus.yaml", &sources)
	if s := sources.Datasources[0]; s.URL != "http://prometheus:9090" || !s.IsDefault || s.Type != chosenSource(t) {
		t.Errorf("Grafana's source is %+v, and the dashboard wants a default one of type %q", s, chosenSource(t))
	}
	var dashboards struct {
		Providers []struct {
			Options struct{ Path string }
		}
	}
	readYAML(t, "../grafana/provisioning/dashboards/files.yaml", &dashboards)
	board := c.mounted("grafana", "./grafana/dashboard.json")
	if filepath.Dir(board) != dashboards.Providers[0].Options.Path || c.Services["grafana"].Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] != board {
		t.Errorf("the dashboard is %s, and Grafana looks in %s", board, dashboards.Providers[0].Options.Path)
	}
	if provisioning := c.mounted("grafana", "./grafana/provisioning"); provisioning != "/etc/grafana/provisioning" || !json.Valid(file(t, "../grafana/dashboard.json")) {
		t.Errorf("the provisioning is %s, or the dashboard is not JSON", provisioning)
	}
}
