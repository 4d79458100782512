package deploy

import (
	"slices"
	"strings"
	"testing"

	rbac "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// right is one thing that an account may do; namespace "" is all of them, and name "" every object.
type right struct{ namespace, group, resource, name, verb string }

// allowed are those that objects give.
func allowed(t *testing.T, list []Object) []right {
	t.Helper()
	var out []right
	for _, o := range list {
		if o.Kind != "ClusterRole" && o.Kind != "Role" {
			continue
		}
		var role rbac.Role // a ClusterRole has the same rules
		if err := yaml.Unmarshal([]byte(o.YAML), &role); err != nil {
			t.Fatalf("%s: %v", o, err)
		}
		for _, r := range role.Rules {
			if len(r.ResourceNames) == 0 {
				r.ResourceNames = []string{""}
			}
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, name := range r.ResourceNames {
						for _, verb := range r.Verbs {
							out = append(out, right{o.Namespace, group, resource, name, verb})
						}
					}
				}
			}
		}
	}
	return out
}

// TestOperatorRights: the operator has every right that an installation gives, without which Kubernetes refuses it; and
// none to give more.
func TestOperatorRights(t *testing.T) {
	for _, namespaces := range []string{"{shop}", "{*}"} {
		set := []string{"secretNamespaces=" + namespaces}
		own, err := RenderOperator(Config{Set: set})
		if err != nil {
			t.Fatal(err)
		}
		has := allowed(t, own)
		for _, revision := range []string{"", "canary"} {
			for _, want := range allowed(t, rendered(t, Config{Values: values(t, strings.ReplaceAll(full, "accessLogFile: /dev/stdout, ", "")), Set: set, Revision: revision})) {
				if !slices.ContainsFunc(has, func(r right) bool {
					return r.group == want.group && r.resource == want.resource && r.verb == want.verb &&
						(r.namespace == "" || r.namespace == want.namespace) && (r.name == "" || r.name == want.name)
				}) {
					t.Errorf("%s, revision %q: the operator lacks %+v", namespaces, revision, want)
				}
			}
		}
		for _, r := range has {
			if r.verb == "*" || r.verb == "escalate" || r.verb == "bind" || r.verb == "impersonate" || r.resource == "secrets" && r.verb == "delete" {
				t.Errorf("the operator has %+v", r)
			}
		}
	}
}

// TestOperatorObjects: the operator is as its values want it, belongs to no installation, and can do no more than it must.
func TestOperatorObjects(t *testing.T) {
	list, err := RenderOperator(Config{Set: []string{"hub=lateen.test", "tag=v1", "replicas=2", "imagePullPolicy=Always", "imagePullSecrets={registry}"}})
	if err != nil {
		t.Fatal(err)
	}
	text := string(Manifest(list))
	for _, want := range []string{"image: lateen.test/lateen-operator:v1", "replicas: 2", "imagePullPolicy: Always", "name: registry", "readOnlyRootFilesystem: true", "runAsNonRoot: true", "drop: [ALL]"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "lateen.dev/installation") {
		t.Error("it is taken for a part of an installation")
	}
	for _, set := range []string{"replica=2", "replicas=0", "secretNamespaces=shop"} {
		if _, err := RenderOperator(Config{Set: []string{set}}); err == nil {
			t.Errorf("%s is not refused", set)
		}
	}
}
