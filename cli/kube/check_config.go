package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// configChecks judge what users have configured.
func configChecks() group {
	return group{"configuration", []check{
		{
			name: "no object is refused", judge: nothingRefused,
			next: "correct the objects that are named; of each its last good version stays in force, if there was one",
		},
		{
			name: "Gateways and routes of the Gateway API are in force", judge: gatewaysInForce,
			next: "do what each message says; a listener or rule without what it refers to is closed, or answers 500",
		},
		{
			name: "lateend finds nothing odd in them", judge: nothingOdd,
			next: "look at the objects that are named: what they ask for has no effect as it stands",
		},
	}}
}

func nothingRefused(ctx context.Context, l *look) verdict {
	there, err := l.definitions(ctx)
	if err != nil {
		return trouble(err)
	}
	var why []string
	for _, d := range there {
		if !strings.HasSuffix(d.group, ".istio.io") || d.storage == "" {
			continue
		}
		err := l.each(ctx, d, d.storage, func(u *unstructured.Unstructured) {
			if text, refused := refusalOf(u.Object); refused {
				why = append(why, fmt.Sprintf("%s %s/%s: %s", d.kind, u.GetNamespace(), u.GetName(), text))
			}
		})
		if err != nil {
			return trouble(err)
		}
	}
	slices.Sort(why)
	return unless(failed, why)
}

// refusalOf is why an object is not in force, by its condition Accepted.
func refusalOf(o map[string]any) (string, bool) {
	list, _, _ := unstructured.NestedSlice(o, "status", "conditions")
	for _, c := range list {
		condition, _ := c.(map[string]any)
		if condition["type"] == "Accepted" && condition["status"] == "False" {
			message, _ := condition["message"].(string)
			return message, true
		}
	}
	return "", false
}

func nothingOdd(ctx context.Context, l *look) verdict {
	list, err := l.states(ctx)
	list = slices.DeleteFunc(slices.Clone(list), func(s controlState) bool { return !s.ready }) // unready tells of these
	if v, may := askable(list, err); !may {
		return v
	}
	var why []string
	for _, s := range list {
		for _, m := range slices.Concat(s.status.Faults, s.status.Warnings) {
			if text := m.String(); !slices.Contains(why, text) {
				why = append(why, text)
			}
		}
	}
	return unless(warned, why)
}
