package control

import (
	"encoding/json"
	"net/http"
	"strings"

	admission "k8s.io/api/admission/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lateen-mesh/lateen/inject"
)

// validatePath is where the validation webhook serves; Istio's.
const validatePath = "/validate"

// validate judges an object that somebody wants to write into the cluster, as `lateen apply` judges one for a folder. It
// writes nothing, so that a dry run is safe.
func (c *Control) validate(_ *http.Request, r *admission.AdmissionRequest) *admission.AdmissionResponse {
	if r.Operation != admission.Create && r.Operation != admission.Update || goes(r.Object.Raw) {
		return inject.Allowed()
	}
	o, faults, findings := c.cluster.Judge(r.Object.Raw)
	var lines []string
	for _, f := range faults {
		lines = append(lines, f.Told())
	}
	if o != nil && r.Operation == admission.Create {
		if err := c.admit(o); err != nil {
			lines = append(lines, err.Error())
		}
	}
	if len(lines) > 0 {
		text := strings.Join(lines, "\n")
		c.log.Info("object refused", "kind", r.Kind.Kind, "namespace", r.Namespace, "name", r.Name, "cause", text)
		return inject.Denied(text)
	}
	var told []string
	for _, f := range warnings(findings) {
		told = append(told, f.Told())
	}
	return inject.Allowed(told...)
}

// goes reports whether an object is being deleted. What is still changed in it are its finalizers, and a fault must not keep
// it from going.
func goes(raw []byte) bool {
	var o meta.PartialObjectMetadata
	return json.Unmarshal(raw, &o) == nil && o.DeletionTimestamp != nil
}
