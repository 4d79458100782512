package kube

import (
	"slices"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source"
)

// Judge says what is wrong with an object, in JSON, that somebody wants to write; if nothing is, it is returned with what
// else there is to say of it as it would stand among all that is in force. Nothing changes by it.
func (s *Store) Judge(raw []byte) (*api.Object, []api.Fault, []source.Finding) {
	r := api.DecodeStored(raw)
	if len(r.Faults) > 0 || len(r.Objects) != 1 {
		return nil, r.Faults, nil
	}
	o := r.Objects[0]
	findings := source.Warnings(r.Warnings)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inForce {
		findings = append(findings, s.picture.set.Trial(o)...)
	}
	return o, nil, slices.DeleteFunc(findings, func(f source.Finding) bool { return f.Object != o.Ref.String() })
}
