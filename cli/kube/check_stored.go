package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/source/attach"
	"github.com/lateen-mesh/lateen/source/kube"
)

// storedChecks judge what is configured already, before an installation reads it.
func storedChecks() group {
	of := func(l level, list func(*stored) []string) func(context.Context, *look) verdict {
		return func(ctx context.Context, look *look) verdict {
			s, err := look.stored(ctx)
			if err != nil {
				return trouble(err)
			}
			return unless(l, list(s))
		}
	}
	return group{"what is configured", []check{
		{
			name: "no policy closes its workloads", judge: of(failed, func(s *stored) []string { return s.closing }),
			next: "correct or delete these policies before their workloads' pods get proxies of Lateen",
		},
		{
			name: "every object is taken as it is", judge: of(failed, func(s *stored) []string { return s.refused }),
			next: "correct the objects that are named: as they are, they will not be in force",
		},
		{
			name: "every object is acted on whole", judge: of(warned, func(s *stored) []string { return s.idle }),
			next: "find out who relies on what is named, and do it another way before their pods get proxies of Lateen",
		},
	}}
}

// stored is what will become of the objects that the cluster has, by object.
type stored struct {
	closing, refused, idle []string
}

// storedGroups are the groups whose objects are judged.
var storedGroups = []string{"networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io"}

// stored judges all of it.
func (l *look) stored(ctx context.Context) (*stored, error) {
	return once(l, "configuration", func() (*stored, error) {
		there, err := l.definitions(ctx)
		if err != nil {
			return nil, err
		}
		s := &stored{}
		for name, d := range there {
			judge := s.object
			if name == "gatewayclasses."+api.GroupGateway {
				judge = s.class
			} else if !slices.Contains(storedGroups, d.group) {
				continue
			}
			if err := l.each(ctx, d, readVersion(name, d), judge); err != nil {
				return nil, err
			}
		}
		if err := l.meshConfig(ctx, s); err != nil {
			return nil, err
		}
		for _, list := range [][]string{s.closing, s.refused, s.idle} {
			slices.Sort(list)
		}
		return s, nil
	})
}

// readVersion is the version in which lateend will read the objects of a definition; of a kind that it does not read, the
// one that is stored.
func readVersion(name string, d definition) string {
	for _, v := range kube.Versions(name) {
		if slices.Contains(d.versions, v) {
			return v
		}
	}
	return d.storage
}

// object judges one of Istio's.
func (s *stored) object(u *unstructured.Unstructured) {
	faults, warnings, instead := kube.Preview(u)
	switch {
	case instead != "":
		s.closing = append(s.closing, fmt.Sprintf("%s: %s", told(faults), instead))
	case len(faults) > 0:
		s.refused = append(s.refused, told(faults))
	case len(warnings) > 0:
		s.idle = append(s.idle, told(warnings))
	}
}

// told is what is said of one object, in a line.
func told(list []api.Fault) string {
	out := []string{list[0].String()}
	for _, f := range list[1:] {
		out = append(out, f.Told())
	}
	return strings.Join(out, "; ")
}

// class judges a GatewayClass: one of a name that lateend would give to its own.
func (s *stored) class(u *unstructured.Unstructured) {
	controller, _, _ := unstructured.NestedString(u.Object, "spec", "controllerName")
	if slices.Contains([]string{attach.ClassLateen, attach.ClassIstio}, u.GetName()) && controller != attach.Controller {
		s.idle = append(s.idle, fmt.Sprintf("GatewayClass %s is of the controller %s, so that Lateen leaves its Gateways alone; "+
			"delete it, and lateend makes it anew as its own", u.GetName(), controller))
	}
}

// meshConfig judges the mesh's configuration: it is the installation's to write.
func (l *look) meshConfig(ctx context.Context, s *stored) error {
	m, err := l.kube.CoreV1().ConfigMaps(deploy.Namespace).Get(ctx, api.ConfigName, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Labels[labelInstallation] == "" {
		s.idle = append(s.idle, fmt.Sprintf("ConfigMap %s/%s is there: an installation writes its own MeshConfig over it; "+
			"give it what is to stay as the value meshConfig", m.Namespace, m.Name))
	}
	raw, err := json.Marshal(core.ConfigMap{
		TypeMeta: meta.TypeMeta{APIVersion: "v1", Kind: api.KindConfigMap}, ObjectMeta: meta.ObjectMeta{Namespace: m.Namespace, Name: m.Name}, Data: m.Data,
	})
	if err != nil {
		return err
	}
	read := api.DecodeStored(raw)
	if len(read.Faults) > 0 {
		s.refused = append(s.refused, told(read.Faults))
	} else if len(read.Warnings) > 0 {
		s.idle = append(s.idle, told(read.Warnings))
	}
	return nil
}
