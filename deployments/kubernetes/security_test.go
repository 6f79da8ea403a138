package kubernetes

import (
	"slices"
	"strings"
	"testing"

	psa "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// TestRestricted runs the code of Kubernetes' own admission controller.
func TestRestricted(t *testing.T) {
	t.Parallel()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := psa.LevelVersion{Level: psa.LevelRestricted, Version: psa.LatestVersion()}
	for name, m := range overlays(t) {
		template := m.deployment.Spec.Template
		results := evaluator.EvaluatePod(restricted, &template.ObjectMeta, &template.Spec)
		if result := policy.AggregateCheckResults(results); !result.Allowed {
			t.Errorf("%s: %s: %s", name, result.ForbiddenReason(), result.ForbiddenDetail())
		}
		if level := m.namespace.Labels[psa.EnforceLevelLabel]; level != string(psa.LevelRestricted) {
			t.Errorf("%s: the namespace enforces %q", name, level)
		}
		*template.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation = true
		if policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &template.ObjectMeta, &template.Spec)).Allowed {
			t.Error("a container that may become root is allowed: this test proves nothing")
		}
	}
}

// TestConfinement checks what the restricted profile does not require.
func TestConfinement(t *testing.T) {
	t.Parallel()
	for name, m := range overlays(t) {
		c, pod := m.container(t), m.pod()
		if readOnly := c.SecurityContext.ReadOnlyRootFilesystem; readOnly == nil || !*readOnly {
			t.Errorf("%s: the root file system is writable", name)
		}
		if *pod.SecurityContext.RunAsUser != 65532 || *pod.SecurityContext.FSGroup != 65532 {
			t.Errorf("%s: it runs as %+v, and the image is for 65532", name, pod.SecurityContext)
		}
		if token := pod.AutomountServiceAccountToken; token == nil || *token || *m.account.AutomountServiceAccountToken || pod.ServiceAccountName != m.account.Name {
			t.Errorf("%s: it has a token for Kubernetes", name)
		}
	}
}

// TestSecrets checks that secrets are files, and that the files are mounted.
func TestSecrets(t *testing.T) {
	t.Parallel()
	all := overlays(t)
	components := []string{"nats-credentials", "nats-password"}
	for _, component := range components {
		all[component] = withComponent(t, component)
	}
	for name, m := range all {
		env := m.environment(t)
		if env["USERPILOT_API_KEY"] != "" || env["USERPILOT_API_KEY_FILE"] == "" {
			t.Errorf("%s: the key is not a file", name)
		}
		volumes := map[string]string{} // mounted Secrets by path
		for _, volume := range m.pod().Volumes {
			if volume.Secret == nil || *volume.Secret.DefaultMode != 0o440 {
				t.Errorf("%s: the volume %s is %+v", name, volume.Name, volume.VolumeSource)
			}
			for _, mount := range m.container(t).VolumeMounts {
				if mount.Name == volume.Name && mount.ReadOnly && mount.SubPath == "" { // a SubPath is never updated
					volumes[mount.MountPath+"/"] = volume.Secret.SecretName
				}
			}
		}
		for variable, file := range env {
			if !strings.HasPrefix(file, "/") {
				continue
			}
			if folder := file[:strings.LastIndex(file, "/")+1]; volumes[folder] == "" {
				t.Errorf("%s: %s is %s, where nothing is mounted", name, variable, file)
			}
		}
		if slices.Contains(components, name) && (env["NATS_CREDS"]+env["IDENTIFY_NATS_PASSWORD_FILE"] == "" || len(volumes) != 2) {
			t.Errorf("%s adds %v to %v", name, volumes, env)
		}
	}
}
