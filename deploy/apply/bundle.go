package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/lateen-mesh/lateen/deploy"
)

// The annotations by which the Gateway API says of each of its definitions which release of it this is
// (gateway-api.sigs.k8s.io/concepts/versioning).
const (
	annotationBundle  = "gateway.networking.k8s.io/bundle-version"
	annotationChannel = "gateway.networking.k8s.io/channel"
)

// bundle is a release of the Gateway API.
type bundle struct{ version, channel string }

func (b bundle) String() string { return fmt.Sprintf("%s (%s channel)", b.version, b.channel) }

func bundleOf(meta metav1.Object) bundle {
	return bundle{meta.GetAnnotations()[annotationBundle], meta.GetAnnotations()[annotationChannel]}
}

// over reports whether ours must not be put over b: it is newer, or of another channel, or there is no telling.
func (b bundle) over(ours bundle) bool {
	if b.channel != ours.channel {
		return true
	}
	own, err := version.ParseSemantic(ours.version)
	if err != nil {
		return true
	}
	theirs, err := version.ParseSemantic(b.version)
	return err != nil || own.LessThan(theirs)
}

// definitions are those that are to be applied. A release of the Gateway API in the cluster that must not be replaced is
// left alone, all of it, since kinds of two releases do not go together; stays says so, or is empty.
func (a *Applier) definitions(ctx context.Context) (wanted []deploy.Object, stays string, err error) {
	all, err := deploy.Definitions()
	if err != nil {
		return nil, "", err
	}
	for _, o := range all {
		if !gatewayAPI(o) {
			continue
		}
		value, err := o.Value()
		if err != nil {
			return nil, "", err
		}
		live, err := a.live(ctx, o)
		if err != nil {
			return nil, "", err
		}
		if live == nil || bundleOf(live).version == "" {
			continue
		}
		if there, ours := bundleOf(live), bundleOf(&unstructured.Unstructured{Object: value}); there.over(ours) {
			all = slices.DeleteFunc(slices.Clone(all), gatewayAPI)
			return all, fmt.Sprintf("the Gateway API %s is there and stays as it is; what %s has of it is read", there, ours), nil
		}
	}
	return all, "", nil
}

// gatewayAPI reports whether a definition is of the Gateway API.
func gatewayAPI(o deploy.Object) bool { return strings.HasSuffix(o.Name, ".gateway.networking.k8s.io") }
