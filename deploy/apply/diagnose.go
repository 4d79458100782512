package apply

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// podsMax and eventsMax bound what is read to find out why a workload is not ready.
const (
	podsMax   = 100
	eventsMax = 100
)

// trouble is why something is not ready.
type trouble struct {
	// pod is whose trouble it is; empty: it is the workload's own.
	pod string
	// text names the object and the reason, next is what to do about it, with what separates the two.
	text, next string
}

// diagnose finds out why a workload is not ready: its controller says so, or one of its pods. An empty text: nothing is
// known that would not mend itself.
func (a *Applier) diagnose(ctx context.Context, o *unstructured.Unstructured) trouble {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		if m, _ := c.(map[string]any); m["type"] == "ReplicaFailure" && m["status"] == "True" {
			return trouble{text: fmt.Sprintf("its pods are refused: %v", m["message"]), next: "; see to what the message names, the pods then come by themselves"}
		}
	}
	chosen, found, _ := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
	if !found {
		return trouble{}
	}
	list, err := a.client.Resource(core("pods")).Namespace(o.GetNamespace()).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(chosen).String(), Limit: podsMax})
	if err != nil {
		return trouble{}
	}
	for _, u := range list.Items {
		var pod corev1.Pod
		if runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &pod) != nil || pod.DeletionTimestamp != nil {
			continue
		}
		if t := judge(&pod); t.text != "" {
			return t
		}
		if t := a.complaint(ctx, &pod); t.text != "" {
			return t
		}
	}
	return trouble{}
}

// judge finds a pod's trouble in what the scheduler and the kubelet say of it.
func judge(pod *corev1.Pod) trouble {
	name := "pod " + pod.Namespace + "/" + pod.Name
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return trouble{name, name + " has no node: " + c.Message, "; make room on a node, or change the pod's resources, nodeSelector or tolerations"}
		}
	}
	containers := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		w := s.State.Waiting
		if w == nil && !s.Ready && s.State.Running != nil && s.LastTerminationState.Terminated != nil {
			w = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"} // it has a moment between two ends
		}
		if w == nil || w.Reason == "PodInitializing" || w.Reason == "ContainerCreating" {
			continue
		}
		image := s.Image
		for _, c := range containers {
			if c.Name == s.Name {
				image = c.Image
			}
		}
		text := fmt.Sprintf("%s, container %s: ", name, s.Name)
		logs := fmt.Sprintf("; see `kubectl logs -n %s %s -c %s --previous`", pod.Namespace, pod.Name, s.Name)
		switch w.Reason {
		case "ErrImagePull", "ImagePullBackOff":
			return trouble{name, text + "ImagePullBackOff: the image " + image + " cannot be had" + cause(w.Message), pullNext}
		case "InvalidImageName", "ErrImageNeverPull":
			return trouble{name, text + w.Reason + ": " + image, pullNext}
		case "CrashLoopBackOff":
			return trouble{name, text + "CrashLoopBackOff" + ended(s.LastTerminationState.Terminated), logs}
		}
		return trouble{name, text + w.Reason + ": " + w.Message, fmt.Sprintf("; see `kubectl describe pod -n %s %s`", pod.Namespace, pod.Name)}
	}
	return trouble{}
}

const pullNext = "; is it there, and may the nodes pull it? Give --set hub=..., --set tag=... or --set imagePullSecrets={...}"

// messageMax bounds what is shown of a message, in bytes.
const messageMax = 300

// cause is a message's last line, in brackets; that a pull is tried later says nothing.
func cause(message string) string {
	message = strings.TrimSpace(message)
	message = message[strings.LastIndexByte(message, '\n')+1:]
	if message == "" || strings.HasPrefix(message, "Back-off") {
		return ""
	}
	return " (" + strings.ToValidUTF8(message[:min(len(message), messageMax)], "") + ")"
}

// ended says how a container ended the last time.
func ended(t *corev1.ContainerStateTerminated) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf(": it ended with code %d%s", t.ExitCode, cmp.Or(cause(t.Message), cause(t.Reason)))
}

// complaint is the last warning among a pod's events, if it does not run.
func (a *Applier) complaint(ctx context.Context, pod *corev1.Pod) trouble {
	if pod.Status.Phase == corev1.PodRunning {
		return trouble{}
	}
	only := fields.Set{"involvedObject.name": pod.Name, "involvedObject.uid": string(pod.UID), "type": corev1.EventTypeWarning}
	list, err := a.client.Resource(core("events")).Namespace(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: only.String(), Limit: eventsMax})
	if err != nil || len(list.Items) == 0 {
		return trouble{}
	}
	last := list.Items[len(list.Items)-1].Object
	name := "pod " + pod.Namespace + "/" + pod.Name
	return trouble{
		name, fmt.Sprintf("%s: %v: %v", name, last["reason"], last["message"]),
		fmt.Sprintf("; see `kubectl describe pod -n %s %s`", pod.Namespace, pod.Name),
	}
}
