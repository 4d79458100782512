package inject

import (
	"encoding/json"
	"fmt"
	"slices"

	core "k8s.io/api/core/v1"
)

// keyed are the lists of a container whose items go by a key: an item of the user's replaces ours with the same one.
func keyed() map[string]string {
	return map[string]string{"env": "name", "ports": "containerPort", "volumeMounts": "mountPath", "volumeDevices": "devicePath"}
}

// whole are the objects that are not mixed: half of the one and half of the other would be neither.
func whole() []string {
	return []string{"livenessProbe", "readinessProbe", "startupProbe", "lifecycle"}
}

// customise lays what the user has written in a container named istio-proxy over ours, as Istio does. Fields that our
// types do not know are kept, too.
func (j *job) customise(ours core.Container) (any, error) {
	theirs := j.userContainer()
	if theirs == nil {
		return ours, nil
	}
	text, err := json.Marshal(ours)
	if err != nil {
		return nil, fmt.Errorf("write the container %s: %w", ProxyContainer, err)
	}
	var base, over map[string]any
	if err := json.Unmarshal(text, &base); err != nil {
		return nil, fmt.Errorf("write the container %s: %w", ProxyContainer, err)
	}
	if err := json.Unmarshal(theirs, &over); err != nil {
		return nil, fmt.Errorf("read the container %s of the pod: %w", ProxyContainer, err)
	}
	if over["image"] == imageAuto {
		delete(over, "image")
	}
	lay(base, over)
	return base, nil
}

// userContainer is the container of the pod that stands for the proxy; nil if there is none.
func (j *job) userContainer() json.RawMessage {
	if i := slices.IndexFunc(j.pod.Spec.Containers, isProxy); i >= 0 {
		return j.raw.Spec.Containers[i]
	}
	if i := slices.IndexFunc(j.pod.Spec.InitContainers, isProxy); i >= 0 {
		return j.raw.Spec.InitContainers[i]
	}
	return nil
}

// lay lays the fields of over over those of base.
func lay(base, over map[string]any) {
	for name, value := range over {
		ours, theirs := base[name], value
		inner, isObject := theirs.(map[string]any)
		list, isList := theirs.([]any)
		key := keyed()[name]
		switch {
		case isObject && len(inner) == 0, isList && len(list) == 0: // nothing is said
		case isObject && !slices.Contains(whole(), name) && ours != nil:
			if o, ok := ours.(map[string]any); ok {
				lay(o, inner)
			}
		case isList && key != "" && ours != nil:
			base[name] = layList(ours, list, key)
		default:
			base[name] = theirs
		}
	}
}

// layList replaces items of the same key and appends the others.
func layList(ours any, over []any, key string) []any {
	list, _ := ours.([]any)
	keyOf := func(item any) any {
		m, _ := item.(map[string]any)
		return m[key]
	}
	for _, item := range over {
		at := slices.IndexFunc(list, func(have any) bool { return keyOf(have) == keyOf(item) })
		if at >= 0 {
			list[at] = item
		} else {
			list = append(list, item)
		}
	}
	return list
}
