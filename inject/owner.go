package inject

import (
	"regexp"
	"strings"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Owner is the workload that a pod belongs to.
type Owner struct {
	APIVersion, Kind, Name string
}

// URI is Istio's name of an owner (ISTIO_META_OWNER).
func (o Owner) uri(namespace string) string {
	plural := strings.ToLower(o.Kind) + "s"
	return "kubernetes://apis/" + o.APIVersion + "/namespaces/" + namespace + "/" + plural + "/" + o.Name
}

// cronRun is the name of a Job that a CronJob makes: its own name and the time of the run.
var cronRun = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// ownerOf finds the workload of a pod as Istio does: the controller, or the Deployment or CronJob behind it, which can
// be told by the names; a pod without one is its own. known goes first.
func ownerOf(pod *core.Pod, known Owner) Owner {
	if known.Kind != "" {
		return known
	}
	ref := meta.GetControllerOfNoCopy(pod)
	if ref == nil {
		name := pod.Name
		if name == "" {
			name = strings.TrimSuffix(pod.GenerateName, "-")
		}
		return Owner{"v1", "Pod", name}
	}
	o := Owner{ref.APIVersion, ref.Kind, ref.Name}
	switch hash := pod.Labels["pod-template-hash"]; {
	case o.Kind == "ReplicaSet" && hash != "" && strings.HasSuffix(o.Name, "-"+hash):
		o.Kind, o.Name = "Deployment", strings.TrimSuffix(o.Name, "-"+hash)
	case o.Kind == "Job":
		if m := cronRun.FindStringSubmatch(o.Name); m != nil {
			o.Kind, o.Name = "CronJob", m[1]
		}
	}
	return o
}
