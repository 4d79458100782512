package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
	kubeyaml "sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/api"
)

// Bounds of what Documents reads.
const (
	documentsMax = 10_000
	depthMax     = 64
)

// Verdict is what became of one object of a document.
type Verdict struct {
	Object   string // "Deployment default/reviews"
	Decision Decision
	Warnings []string
}

// workloads are the kinds that hold a template of pods, and where.
func workloads() map[string][]string {
	template := []string{"spec", "template"}
	return map[string][]string{
		"Pod": {}, "Deployment": template, "ReplicaSet": template, "StatefulSet": template, "DaemonSet": template, "Job": template,
		"ReplicationController": template, "CronJob": {"spec", "jobTemplate", "spec", "template"},
	}
}

// Documents injects the workloads of a YAML text, which may be several documents and hold Lists. What is not injected
// stays as it is to the byte; an injected document keeps its comments and is laid out anew. Injecting the result again
// changes nothing.
func (in *Injector) Documents(text []byte) (out []byte, verdicts []Verdict, err error) {
	docs := api.Documents(text)
	if len(docs) > documentsMax {
		return nil, nil, fmt.Errorf("more than %d documents at once; split the file", documentsMax)
	}
	var b bytes.Buffer
	at := 0
	for _, doc := range docs {
		body := text[doc.Start:doc.End]
		changed, list, err := in.document(body)
		if err != nil {
			return nil, nil, fmt.Errorf("document at line %d: %w", doc.Line, err)
		}
		verdicts = append(verdicts, list...)
		b.Write(text[at:doc.Start])
		at = doc.End
		if changed == nil {
			changed = body
		} else if bytes.HasPrefix(body, []byte(separator)) { // with the beginning of the document behind it
			b.WriteString(separator + "\n")
		}
		b.Write(changed)
	}
	b.Write(text[at:])
	return b.Bytes(), verdicts, nil
}

// separator is what a line between two documents begins with.
const separator = "---"

// document injects what is in one document; nil: nothing changes.
func (in *Injector) document(text []byte) ([]byte, []Verdict, error) {
	var root, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&root); err != nil {
		return nil, nil, fmt.Errorf("this is not YAML: %w", err)
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) { // it would be lost
		return nil, nil, fmt.Errorf("this is more than one document: write a line %q between them", separator)
	}
	if len(root.Content) == 0 || root.Content[0].Kind != yaml.MappingNode {
		return nil, nil, nil
	}
	asJSON, err := kubeyaml.YAMLToJSON(text) // as kubectl reads it
	if err != nil {
		return nil, nil, fmt.Errorf("this is not an object: %w", err)
	}
	var value any
	if err := json.Unmarshal(asJSON, &value); err != nil {
		return nil, nil, fmt.Errorf("this is not an object: %w", err)
	}
	verdicts, changed, err := in.object(root.Content[0], value, 0)
	if err != nil || !changed {
		return nil, verdicts, err
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(&root), e.Close()); err != nil {
		return nil, nil, fmt.Errorf("write the document: %w", err)
	}
	return b.Bytes(), verdicts, nil
}

// object injects an object, or those of a List.
func (in *Injector) object(n *yaml.Node, value any, depth int) (verdicts []Verdict, changed bool, err error) {
	fields, ok := value.(map[string]any)
	if !ok || depth > depthMax {
		return nil, false, nil
	}
	kind, _ := fields["kind"].(string)
	if items, isList := fields["items"].([]any); isList && kind == "List" {
		list := child(n, "items")
		for i, item := range items {
			v, c, err := in.object(element(list, i), item, depth+1)
			if err != nil {
				return nil, false, err
			}
			verdicts, changed = append(verdicts, v...), changed || c
		}
		return verdicts, changed, nil
	}
	path, ok := workloads()[kind]
	if !ok {
		return nil, false, nil
	}
	template := any(fields)
	for _, step := range path {
		m, _ := template.(map[string]any)
		template = m[step]
		n = child(n, step)
	}
	verdict, changed, err := in.template(n, fields, template)
	if err != nil {
		return nil, false, err
	}
	return []Verdict{verdict}, changed, nil
}

// template injects the template of pods of an object, or a Pod itself.
func (in *Injector) template(n *yaml.Node, object map[string]any, template any) (Verdict, bool, error) {
	text := func(m map[string]any, name string) string {
		s, _ := m[name].(string)
		return s
	}
	metadata, _ := object["metadata"].(map[string]any)
	kind, namespace, name := text(object, "kind"), text(metadata, "namespace"), text(metadata, "name")
	v := Verdict{Object: fmt.Sprintf("%s %s/%s", kind, firstOf(namespace, api.DefaultNamespace), firstOf(name, text(metadata, "generateName")))}
	if m, ok := template.(map[string]any); !ok || m["spec"] == nil {
		return v, false, fmt.Errorf("%s has no template of pods", v.Object)
	}
	pod, err := json.Marshal(template)
	if err != nil {
		return v, false, fmt.Errorf("%s: %w", v.Object, err)
	}
	r := Request{Pod: pod, Namespace: namespace}
	if kind != "Pod" {
		r.Owner = Owner{APIVersion: text(object, "apiVersion"), Kind: kind, Name: name}
	}
	result, err := in.Inject(r)
	if err != nil {
		return v, false, err
	}
	v.Decision, v.Warnings = result.Decision, result.Warnings
	if err := result.Patch.apply(n); err != nil {
		return v, false, fmt.Errorf("%s: %w", v.Object, err)
	}
	return v, len(result.Patch) > 0, nil
}

// InjectAll injects the documents of in and writes them to out. explain, unless nil, gets a line for each workload and
// each warning.
func (in *Injector) InjectAll(r io.Reader, w, explain io.Writer) error {
	text, err := io.ReadAll(io.LimitReader(r, inputMax+1))
	if err != nil {
		return fmt.Errorf("read the objects: %w", err)
	}
	if len(text) > inputMax {
		return fmt.Errorf("read the objects: more than %d MiB at once; split the file", inputMax>>20)
	}
	out, verdicts, err := in.Documents(text)
	if err != nil {
		return err
	}
	if explain != nil {
		if err := tell(explain, verdicts); err != nil {
			return err
		}
	}
	if _, err := w.Write(out); err != nil {
		return fmt.Errorf("write the objects: %w", err)
	}
	return nil
}

// tell writes a line for each workload and each warning.
func tell(w io.Writer, verdicts []Verdict) error {
	var b strings.Builder
	for _, v := range verdicts {
		word := "not injected"
		if v.Decision.Inject {
			word = "injected"
		}
		fmt.Fprintf(&b, "%s: %s: %s\n", v.Object, word, v.Decision.Reason)
		for _, warning := range v.Warnings {
			fmt.Fprintf(&b, "%s: warning: %s\n", v.Object, warning)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	return nil
}

// inputMax bounds what InjectAll reads.
const inputMax = 16 << 20
