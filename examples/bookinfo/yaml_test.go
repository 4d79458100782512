package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
	security "istio.io/api/security/v1"
	"sigs.k8s.io/yaml"
)

// object is one YAML document, and the file that it stands in.
type object struct {
	file string
	doc  map[string]any
}

// kind is the object's apiVersion and kind.
func (o object) kind() string { return o.text("apiVersion") + " " + o.text("kind") }

// text is the string at a path of keys; empty when there is none.
func (o object) text(path ...string) string {
	var at any = o.doc
	for _, key := range path {
		inner, ok := at.(map[string]any)
		if !ok {
			return ""
		}
		at = inner[key]
	}
	text, _ := at.(string)
	return text
}

// configFiles are the YAML files of the sample.
func configFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, folder := range []string{"platform", "platform/kubernetes", "networking", "policy"} {
		found, err := filepath.Glob(folder + "/*.yaml")
		if err != nil || len(found) == 0 {
			t.Fatalf("no YAML in %s: %v", folder, err)
		}
		files = append(files, found...)
	}
	return files
}

// objects are all documents of the sample's files.
func objects(t *testing.T) []object {
	t.Helper()
	var all []object
	for _, file := range configFiles(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(string(text), "\n---\n") {
			o := object{file: file}
			if err := yaml.UnmarshalStrict([]byte(part), &o.doc); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, o)
		}
	}
	return all
}

// TestObjects decodes each spec into the type that Istio publishes for it,
// which refuses unknown fields, and checks the name and namespace.
func TestObjects(t *testing.T) {
	types := map[string]func() proto.Message{
		"networking.istio.io/v1 Gateway":           func() proto.Message { return &networking.Gateway{} },
		"networking.istio.io/v1 VirtualService":    func() proto.Message { return &networking.VirtualService{} },
		"networking.istio.io/v1 DestinationRule":   func() proto.Message { return &networking.DestinationRule{} },
		"security.istio.io/v1 AuthorizationPolicy": func() proto.Message { return &security.AuthorizationPolicy{} },
		"security.istio.io/v1 PeerAuthentication":  func() proto.Message { return &security.PeerAuthentication{} },
		"v1 Service": nil, "v1 ServiceAccount": nil, "apps/v1 Deployment": nil,
	}
	for _, o := range objects(t) {
		newSpec, known := types[o.kind()]
		if !known {
			t.Errorf("%s: unexpected kind %q", o.file, o.kind())
			continue
		}
		if o.text("metadata", "name") == "" || o.text("metadata", "namespace") != "default" {
			t.Errorf("%s: %s has no name or is not in the namespace default", o.file, o.kind())
		}
		if newSpec == nil {
			continue
		}
		spec, err := json.Marshal(o.doc["spec"])
		if err != nil {
			t.Fatal(err)
		}
		if err := protojson.Unmarshal(spec, newSpec()); err != nil {
			t.Errorf("%s: %s %s: %v", o.file, o.kind(), o.text("metadata", "name"), err)
		}
	}
}

// TestServices holds platform/services.yaml to the contract of the sample.
func TestServices(t *testing.T) {
	var names []string
	for _, o := range objects(t) {
		if o.kind() != "v1 Service" {
			continue
		}
		name := o.text("metadata", "name")
		names = append(names, name)
		if got := o.text("spec", "selector", "app"); got != name {
			t.Errorf("service %s selects app %q", name, got)
		}
		ports, err := yaml.Marshal(o.doc["spec"].(map[string]any)["ports"])
		if err != nil {
			t.Fatal(err)
		}
		if want := "- name: http\n  port: 9080\n  targetPort: 9080\n"; string(ports) != want {
			t.Errorf("ports of %s:\n%swant:\n%s", name, ports, want)
		}
	}
	if want := []string{productpage, details, reviews, ratings}; !slices.Equal(names, want) {
		t.Errorf("services %v, want %v", names, want)
	}
}

// TestDeployments holds platform/kubernetes/workloads.yaml to what the services, the subsets and the policies expect.
func TestDeployments(t *testing.T) {
	var names, accounts []string
	for _, o := range objects(t) {
		name := o.text("metadata", "name")
		switch o.kind() {
		case "v1 ServiceAccount":
			accounts = append(accounts, name)
		case "apps/v1 Deployment":
			names = append(names, name)
			app, version, _ := strings.Cut(name, "-")
			for _, labels := range [][]string{{"metadata"}, {"spec", "template", "metadata"}} {
				if o.text(append(labels, "labels", "app")...) != app || o.text(append(labels, "labels", "version")...) != version {
					t.Errorf("%s: labels of %s", name, strings.Join(labels, "."))
				}
			}
			if got := o.text("spec", "template", "spec", "serviceAccountName"); got != "bookinfo-"+app {
				t.Errorf("%s runs as %q", name, got)
			}
		}
	}
	if want := []string{"bookinfo-productpage", "bookinfo-details", "bookinfo-reviews", "bookinfo-ratings"}; !slices.Equal(accounts, want) {
		t.Errorf("service accounts %v, want %v", accounts, want)
	}
	want := []string{"productpage-v1", "details-v1", "reviews-v1", "reviews-v2", "reviews-v3", "ratings-v1"}
	if !slices.Equal(names, want) {
		t.Errorf("deployments %v, want %v", names, want)
	}
}

// walk calls visit for each string of a document, with the key that it stands under.
func walk(key string, value any, visit func(key, text string, parent map[string]any), parent map[string]any) {
	switch value := value.(type) {
	case map[string]any:
		for k, v := range value {
			walk(k, v, visit, value)
		}
	case []any:
		for _, v := range value {
			walk(key, v, visit, parent)
		}
	case string:
		visit(key, value, parent)
	}
}

// TestReferences checks that every host, subset, label and principal that a
// file names exists.
func TestReferences(t *testing.T) {
	services := []string{productpage, details, reviews, ratings}
	subsets := map[string][]string{productpage: {"v1"}, details: {"v1"}, reviews: {"v1", "v2", "v3"}, ratings: {"v1"}}
	principal := regexp.MustCompile(`^cluster\.local/ns/default/sa/bookinfo-(productpage|details|reviews|ratings)$`)
	for _, o := range objects(t) {
		if o.kind() == "apps/v1 Deployment" {
			continue // TestDeployments reads these.
		}
		walk("", o.doc["spec"], func(key, text string, parent map[string]any) {
			ok := true
			switch key {
			case "host":
				ok = slices.Contains(services, text)
			case "hosts":
				ok = slices.Contains(services, text) || text == "*" || text == "ratings.example"
			case "subset":
				host, _ := parent["host"].(string)
				ok = slices.Contains(subsets[host], text)
			case "version":
				ok = slices.Contains(subsets[o.text("spec", "host")], text)
			case "app":
				ok = slices.Contains(services, text)
			case "gateways":
				ok = text == "bookinfo-gateway"
			case "principals":
				ok = principal.MatchString(text)
			}
			if !ok {
				t.Errorf("%s: %s %q names nothing that exists", o.file, key, text)
			}
		}, nil)
	}
}

// TestCookieCanary tries the cookie route's expression as the mesh does: on the
// whole header (RE2, anchored at both ends).
func TestCookieCanary(t *testing.T) {
	var whole *regexp.Regexp
	for _, o := range objects(t) {
		walk("", o.doc["spec"], func(key, text string, _ map[string]any) {
			if key == "regex" {
				whole = regexp.MustCompile(`\A(?:` + text + `)\z`)
			}
		}, nil)
	}
	for cookie, want := range map[string]bool{
		"user=beta-ann": true, "a=b; user=beta-ann; c=d": true, "a=b;user=beta-": true,
		"user=jason": false, "superuser=beta-ann": false, "a=user; b=beta-ann": false, "": false,
	} {
		if got := whole.MatchString(cookie); got != want {
			t.Errorf("cookie %q matches: %v, want %v", cookie, got, want)
		}
	}
}

// TestFilesExplainThemselves: each file begins with what it does and what to
// look at, and the README lists each.
func TestFilesExplainThemselves(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range configFiles(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitN(string(text), "\n", 3)
		if !strings.HasPrefix(lines[0], "# ") || !strings.Contains(string(text), "# Look at: ") {
			t.Errorf("%s does not begin with what it does and what to look at", file)
		}
		if !strings.Contains(string(readme), "`"+file+"`") {
			t.Errorf("README.md does not list %s", file)
		}
	}
	for _, name := range regexp.MustCompile("`((?:platform|networking|policy)/[a-z0-9-]+\\.yaml)`").FindAllStringSubmatch(string(readme), -1) {
		if _, err := os.Stat(name[1]); err != nil {
			t.Errorf("README.md lists a file that is not there: %v", err)
		}
	}
}

// TestReadmeHeadings holds the README to its form.
func TestReadmeHeadings(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.SplitSeq(string(readme), "\n") {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			got = append(got, heading)
		}
	}
	if want := []string{"Name", "Description", "Syntax", "Examples", "Metrics"}; !slices.Equal(got, want) {
		t.Errorf("headings %v, want %v", got, want)
	}
}
