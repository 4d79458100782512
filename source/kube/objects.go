package kube

import (
	"cmp"
	"encoding/json"
	"slices"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/lateen-mesh/lateen/api"
)

// stored is an object of the configuration as the API server has it.
type stored struct {
	object           *api.Object // nil: it is refused
	closed           *api.Object // what is in force of a policy that is refused while there is no last good version
	faults, warnings []api.Fault
	// standing is what its status says so far; nil for kinds that have none.
	standing *standing
}

// annotationApplied is kubectl's copy of what was applied.
const annotationApplied = "kubectl.kubernetes.io/last-applied-configuration"

// written reads an object of a kind of users' own by the same rules as source/dir.
func written(o runtime.Object) any {
	u := o.(*unstructured.Unstructured)
	out := &stored{standing: standingOf(u)}
	unstructured.RemoveNestedField(u.Object, "status")
	unstructured.RemoveNestedField(u.Object, "metadata", "managedFields")
	unstructured.RemoveNestedField(u.Object, "metadata", "annotations", annotationApplied)
	raw, err := u.MarshalJSON()
	if err != nil {
		out.faults = []api.Fault{{Message: err.Error()}}
	} else {
		out.read(raw)
	}
	if len(out.faults) > 0 {
		out.closed = closed(u, out.faults)
		out.standing.refers(u)
	}
	for i := range out.faults {
		out.faults[i].Object = cmp.Or(out.faults[i].Object, refOf(u).String())
	}
	return out
}

// Preview says what would become of an object of a kind of users' own if a server read it for the first time: why it would be
// refused, what of it would have no effect, and what would be in force in its place (decision 010); empty: nothing would.
func Preview(u *unstructured.Unstructured) (faults, warnings []api.Fault, instead string) {
	x := written(u.DeepCopy()).(*stored)
	if x.closed != nil {
		instead = shut(x.closed).Message
	}
	return x.faults, x.warnings, instead
}

// refOf names an object as package api does.
func refOf(u *unstructured.Unstructured) api.Ref {
	kind := u.GetKind()
	if kind == api.KindGateway && u.GroupVersionKind().Group == api.GroupGateway {
		kind = api.KindListenedGateway
	}
	return api.Ref{Kind: kind, Namespace: u.GetNamespace(), Name: u.GetName()}
}

// meshConfig reads the ConfigMap that holds the mesh's configuration.
func meshConfig(o runtime.Object) any {
	m := o.(*core.ConfigMap)
	out := &stored{}
	raw, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": api.KindConfigMap, "data": m.Data, "metadata": map[string]any{"name": m.Name, "namespace": m.Namespace},
	})
	if err != nil {
		out.faults = []api.Fault{{Object: api.KindConfigMap + " " + m.Namespace + "/" + m.Name, Message: err.Error()}}
		return out
	}
	out.read(raw)
	return out
}

func (x *stored) read(raw []byte) {
	r := api.DecodeStored(raw)
	x.faults, x.warnings = r.Faults, r.Warnings
	if len(r.Faults) == 0 && len(r.Objects) == 1 {
		x.object = r.Objects[0]
	}
}

// objectsRead takes over objects of a kind. One that is refused leaves its last good version in force.
func objectsRead(kind string) func(*turn, map[key]any, bool) {
	known := map[key]struct{}{}
	return func(t *turn, items map[key]any, whole bool) {
		t.configured = true
		if whole {
			for k := range known {
				if _, there := items[k]; !there {
					delete(known, k)
					t.forget(api.Ref{Kind: kind, Namespace: k.Namespace, Name: k.Name})
				}
			}
		}
		for k, item := range items {
			ref := api.Ref{Kind: kind, Namespace: k.Namespace, Name: k.Name}
			x, _ := item.(*stored)
			if x == nil {
				delete(known, k)
				t.forget(ref)
				continue
			}
			known[k] = struct{}{}
			faults := x.faults
			switch {
			case x.object != nil:
				t.upsert = append(t.upsert, x.object)
			case x.closed != nil && t.isClosed(ref):
				t.upsert = append(t.upsert, x.closed)
				faults = append(slices.Clone(faults), shut(x.closed))
			}
			note(t.refused, ref, faults)
			note(t.warned, ref, x.warnings)
			if x.standing != nil {
				t.read[ref] = &account{x.standing, faults}
			}
		}
	}
}

// isClosed reports whether there is no good version of an object.
func (t *turn) isClosed(ref api.Ref) bool {
	o := t.set.Written(ref)
	if o == nil {
		return true
	}
	_, closed := o.Spec.(*api.Unreadable)
	return closed
}

func (t *turn) forget(ref api.Ref) {
	t.remove = append(t.remove, ref)
	delete(t.refused, ref)
	delete(t.warned, ref)
	delete(t.read, ref)
	t.status.forget(ref)
}

func note(m map[api.Ref][]api.Fault, ref api.Ref, list []api.Fault) {
	if len(list) == 0 {
		delete(m, ref)
		return
	}
	m[ref] = list
}
