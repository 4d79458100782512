package deploy

import (
	"cmp"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	diff "github.com/google/go-cmp/cmp"
	rbac "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/source/kube"
)

// rightsOf lists single rights as "who | where | group | resource | name | verb".
func rightsOf(into map[string]bool, who, where string, groups, resources, names, verbs []string) {
	if len(names) == 0 {
		names = []string{""}
	}
	for _, group := range groups {
		for _, resource := range resources {
			for _, name := range names {
				for _, verb := range verbs {
					into[strings.Join([]string{who, where, cmp.Or(group, "core"), resource, name, verb}, " | ")] = true
				}
			}
		}
	}
}

// given are the rights that an installation gives, as the table of docs/kubernetes.md would name them.
func given(t *testing.T, into map[string]bool, c Config) {
	t.Helper()
	for _, o := range rendered(t, c) {
		if o.Kind != "Role" && o.Kind != "ClusterRole" {
			continue
		}
		var role rbac.Role // a ClusterRole has the same fields, but for what this chart does not use
		if err := yaml.Unmarshal([]byte(o.YAML), &role); err != nil {
			t.Fatal(err)
		}
		who, where := o.Name, cmp.Or(o.Namespace, "all")
		if c.Revision != "" {
			who = strings.Replace(who, "-"+c.Revision, "", 1)
		}
		if name, ok := strings.CutSuffix(who, "-secrets"); ok {
			who, where = name, "secretNamespaces"
		}
		for _, r := range role.Rules {
			names := slices.Clone(r.ResourceNames)
			for i := range names {
				names[i] = strings.TrimSuffix(names[i], "-"+c.Revision)
			}
			at := where
			if o.Kind == "ClusterRole" && slices.Contains(r.Resources, "secrets") {
				at = "secretNamespaces" // "*"
			}
			rightsOf(into, who, at, r.APIGroups, r.Resources, names, r.Verbs)
		}
	}
}

// TestRights: docs/kubernetes.md lists every right that the chart gives, with its reason, and no other.
func TestRights(t *testing.T) {
	has := map[string]bool{}
	given(t, has, Config{})
	given(t, has, Config{Values: values(t, full)})
	given(t, has, Config{Set: []string{"secretNamespaces={*}"}, Revision: "canary"})
	text, err := os.ReadFile("../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| who | where |")
	table, _, _ = strings.Cut(table, "\n\n")
	said := map[string]bool{}
	list := func(cell string) []string { return strings.Fields(strings.ReplaceAll(cell, ",", " ")) }
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 7 || strings.TrimSpace(cells[6]) == "" {
			t.Fatalf("not seven columns with a reason: %s", line)
		}
		for _, who := range list(cells[0]) {
			rightsOf(said, who, strings.TrimSpace(cells[1]), list(cells[2]), list(cells[3]), list(cells[4]), list(cells[5]))
		}
	}
	if d := diff.Diff(slices.Sorted(maps.Keys(said)), slices.Sorted(maps.Keys(has))); d != "" {
		t.Errorf("docs/kubernetes.md and the chart differ (-doc +chart):\n%s", d)
	}
}

// TestRightsOfKinds: lateend may read every kind that it reads, and write the status of those that have one.
func TestRightsOfKinds(t *testing.T) {
	has := map[string]bool{}
	given(t, has, Config{})
	definitions, err := Definitions()
	if err != nil {
		t.Fatal(err)
	}
	status := regexp.MustCompile(`(?m)^ +status: \{\}$`)
	for _, d := range definitions {
		resource, group, _ := strings.Cut(d.Name, ".")
		if len(kube.Versions(d.Name)) == 0 {
			continue
		}
		right := strings.Join([]string{"lateend", "all", group, resource, ""}, " | ")
		if !has[right+" | list"] || !has[right+" | watch"] {
			t.Errorf("no right to read %s", d.Name)
		}
		written := strings.Join([]string{"lateend", "all", group, resource + "/status", "", "patch"}, " | ")
		if status.MatchString(d.YAML) && !has[written] {
			t.Errorf("no right to write the status of %s", d.Name)
		}
	}
}
