package operate

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestLastWriter: who writes a status does not count, and of two in one second it is somebody else.
func TestLastWriter(t *testing.T) {
	at := func(manager, subresource string, second int64) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Subresource: subresource, Time: new(metav1.NewTime(time.Unix(second, 0)))}
	}
	for want, fields := range map[string][]metav1.ManagedFieldsEntry{
		"":        {{Manager: "untimed"}},
		"lateen":  {at("they", "", 1), at("lateen", "", 2), at("controller", "status", 3)},
		"they":    {at("lateen", "", 2), at("they", "", 3)},
		"lateend": {at("lateend", "", 2), at("lateen", "", 2)},
		"kubectl": {at("lateen", "", 2), at("kubectl", "", 2)},
	} {
		if got := lastWriter(fields); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
