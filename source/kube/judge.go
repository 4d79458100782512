package kube

import (
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source"
)

// Judge says what is wrong with an object, in JSON, that somebody wants to write; if nothing is, it is returned with what
// else there is to say of it as it would stand among all that is in force. Nothing changes by it. Of the Gateway API's objects
// only those are judged that are this mesh's alone: of another one it is not ours to say what is wrong with it.
func (s *Store) Judge(raw []byte) (*api.Object, []api.Fault, []source.Finding) {
	var u unstructured.Unstructured
	if u.UnmarshalJSON(raw) == nil && u.GroupVersionKind().Group == api.GroupGateway && !s.status.owns(&u) {
		return nil, nil, nil
	}
	r := api.DecodeStored(raw)
	if len(r.Faults) > 0 || len(r.Objects) != 1 {
		return nil, r.Faults, nil
	}
	o := r.Objects[0]
	findings := source.Warnings(r.Warnings)
	select {
	case s.judging <- struct{}{}:
		if set := s.copied(); set != nil {
			findings = append(findings, set.Judge(o)...)
		}
		<-s.judging
	case <-time.After(judgeWait):
		s.log.Debug("an object is admitted without a look at the others", "object", o.Ref.String())
	}
	return o, nil, slices.DeleteFunc(findings, func(f source.Finding) bool { return f.Object != o.Ref.String() })
}

// How many objects are judged among all others at a time, as each takes memory for a copy of what is in force, and how
// long one waits for that: what it brings is warnings, without which a user has to do rather than without an answer.
const (
	judgesMax = 2
	judgeWait = time.Second
)

// copied is a copy of what is in force, so that nothing that is told to proxies waits while it is looked at; nil: nothing
// is in force yet.
func (s *Store) copied() *source.Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.inForce {
		return nil
	}
	parameters := maps.Clone(s.picture.parameters)
	return s.picture.set.Copy(func(namespace, name string) bool {
		_, there := parameters[key{Namespace: namespace, Name: name}]
		return there
	})
}
