// Package deploy makes the objects of an installation in Kubernetes.
//
// In come a profile and values; out go the objects, in the order in which they are to be applied. What they are says the
// chart in deploy/chart, and of the operator that keeps installations the one in deploy/operator, and nothing else; Helm's own library renders it, so that `helm install` and ours are the same. The
// package must not know a cluster. All functions may be called concurrently.
package deploy

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/deploy/overlay"
)

// Namespace is the one that a mesh is installed in: its root namespace.
const Namespace = "istio-system"

// DefaultProfile is the profile of a Config that names none.
const DefaultProfile = "default"

// release is what the chart is told that it is called; no object's name says it.
const release = "lateen"

// definitionsFolder is where the chart has its CustomResourceDefinitions.
const definitionsFolder = "chart/crds"

// The folders of our charts: that of the mesh, and that of the operator which keeps installations.
const (
	meshFolder     = "chart"
	operatorFolder = "operator"
)

//go:embed all:chart all:operator
var chartFiles embed.FS

//go:embed profiles
var profileFiles embed.FS

// Config says what is installed. The zero value is the profile DefaultProfile as it is.
type Config struct {
	// Profile is one of Profiles.
	Profile string
	// Values go before the profile's, each before those that stand before it.
	Values []map[string]any
	// Set are single values as of `helm --set`, such as a.b=c, which go before all others.
	Set []string
	// Revision, unless empty, goes before the value of that name.
	Revision string
}

// Object is an object of Kubernetes.
type Object struct {
	APIVersion, Kind, Namespace, Name string
	// YAML is the whole of it, one document that ends with a line feed.
	YAML string
	// value is what YAML says, where that has been read already.
	value map[string]any
}

// Value is what the object's YAML says, as Kubernetes' own clients hold it: whole numbers are int64. It is shared: nobody
// may change it.
func (o Object) Value() (map[string]any, error) {
	if o.value != nil {
		return o.value, nil
	}
	out, err := read(o.YAML)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", o, err)
	}
	return out, nil
}

func read(doc string) (out map[string]any, err error) {
	text, err := yaml.YAMLToJSON([]byte(doc))
	if err != nil {
		return nil, err
	}
	return out, json.Unmarshal(text, &out)
}

// String names the object.
func (o Object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// Profiles are the names of the profiles, sorted.
func Profiles() []string {
	var out []string
	entries, _ := profileFiles.ReadDir("profiles") // embedded: never fails
	for _, e := range entries {
		out = append(out, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return out
}

// Profile returns the values of a profile as YAML, as they are written.
func Profile(name string) (string, error) {
	text, err := profileFiles.ReadFile(path.Join("profiles", name+".yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no profile %q; name one of %s", name, strings.Join(Profiles(), ", "))
	}
	return string(text), err
}

// ReadValues reads values from YAML. A key that comes twice is refused.
func ReadValues(text []byte) (map[string]any, error) {
	out := map[string]any{}
	if err := yaml.UnmarshalStrict(text, &out); err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	return out, nil
}

// Values are those that c gives to the chart, without the chart's own.
func Values(c Config) (map[string]any, error) {
	text, err := Profile(cmp.Or(c.Profile, DefaultProfile))
	if err != nil {
		return nil, err
	}
	profile, err := ReadValues([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", c.Profile, err)
	}
	given, err := Given(c)
	return overlay.Values(profile, given), err
}

// Given are those of Values that are not the profile's.
func Given(c Config) (map[string]any, error) {
	out := map[string]any{}
	for _, layer := range c.Values {
		out = overlay.Values(out, layer)
	}
	for _, set := range c.Set {
		if err := strvals.ParseInto(set, out); err != nil {
			return nil, fmt.Errorf("set %q: %w; write name.name=value", set, err)
		}
	}
	if c.Revision != "" {
		out["revision"] = c.Revision
	}
	return out, nil
}

// Render returns the objects of an installation, in the order in which they are to be applied, without Definitions.
// Values that the chart's schema does not know are refused, all at once.
func Render(c Config) ([]Object, error) {
	values, err := Values(c)
	if err != nil {
		return nil, err
	}
	ours, err := load(meshFolder)
	if err != nil {
		return nil, err
	}
	return render(ours, values)
}

// RenderOperator returns the objects of the operator, which are those of no installation, in the order in which they are to
// be applied. Of c count the values that are given.
func RenderOperator(c Config) ([]Object, error) {
	values, err := Given(c)
	if err != nil {
		return nil, err
	}
	ours, err := load(operatorFolder)
	if err != nil {
		return nil, err
	}
	return render(ours, values)
}

// load reads the chart of a folder.
func load(folder string) (*chart.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(chartFiles, folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := chartFiles.ReadFile(name)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(name, folder+"/"), Data: data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	out, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	return out, nil
}

func render(c *chart.Chart, values map[string]any) ([]Object, error) {
	top, err := util.ToRenderValues(c, values, common.ReleaseOptions{Name: release, Namespace: Namespace, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, fmt.Errorf("judge the values: %w", err)
	}
	texts, err := engine.Render(c, top)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	var out []Object
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		list, err := Parse(texts[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, list...)
	}
	slices.SortStableFunc(out, func(a, b Object) int {
		return cmp.Or(cmp.Compare(rank(a.Kind), rank(b.Kind)), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// Version is that of the chart: of what is installed.
func Version() (string, error) {
	c, err := load(meshFolder)
	if err != nil {
		return "", err
	}
	return c.Metadata.AppVersion, nil
}

// Ground is the namespace of an installation. It is no part of one: it stays when that goes.
func Ground() Object {
	return Object{APIVersion: "v1", Kind: "Namespace", Name: Namespace, YAML: "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + Namespace + "}\n"}
}

// Definitions are the CustomResourceDefinitions of Istio's API and of our own. As with Helm they are no part of an installation: they stay
// when it goes, with everything that users wrote.
func Definitions() ([]Object, error) {
	list, err := definitions()
	return slices.Clone(list), err
}

// definitions reads them once: they are 1.7 MB of YAML, and an operator wants them whenever one of a cluster's changes.
var definitions = sync.OnceValues(func() ([]Object, error) {
	var out []Object
	files, err := chartFiles.ReadDir(definitionsFolder)
	if err != nil {
		return nil, fmt.Errorf("read the definitions: %w", err)
	}
	for _, f := range files {
		text, err := chartFiles.ReadFile(path.Join(definitionsFolder, f.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the definitions: %w", err)
		}
		list, err := Parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("read the definitions %s: %w", f.Name(), err)
		}
		out = append(out, list...)
	}
	return out, nil
})

// Parse takes documents of YAML apart. Those without a kind are none.
func Parse(text string) ([]Object, error) {
	var out []Object
	for doc := range strings.SplitSeq("\n"+text, "\n---\n") {
		doc = strings.Trim(doc, "\n") + "\n"
		value, err := read(doc)
		if err != nil {
			return nil, fmt.Errorf("read an object: %w", err)
		}
		o := Object{YAML: doc, value: value}
		for at, path := range map[*string][]string{&o.APIVersion: {"apiVersion"}, &o.Kind: {"kind"}, &o.Namespace: {"metadata", "namespace"}, &o.Name: {"metadata", "name"}} {
			if *at, _, err = unstructured.NestedString(value, path...); err != nil {
				return nil, fmt.Errorf("read an object: %w", err)
			}
		}
		if o.Kind != "" {
			out = append(out, o)
		}
	}
	return out, nil
}

// Manifest writes objects one behind the other, as `kubectl apply -f` takes them.
func Manifest(lists ...[]Object) []byte {
	var out bytes.Buffer
	for _, list := range lists {
		for _, o := range list {
			out.WriteString("---\n")
			out.WriteString(o.YAML)
		}
	}
	return out.Bytes()
}
