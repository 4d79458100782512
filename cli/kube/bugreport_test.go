package kube

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// secretText stands, in parts, wherever something secret might be.
const secretText = "hunter2"

// unpack reads an archive: texts by name.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for files := tar.NewReader(zip); ; {
		head, err := files.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimPrefix(head.Name, "lateen-bug-report/")] = string(text)
	}
}

// TestBugReport: what is needed is in it, and nothing that is secret, wherever it stood.
func TestBugReport(t *testing.T) {
	const pem = "-----BEGIN EC PRIVATE KEY-----\n" + secretText + "\n-----END EC PRIVATE KEY-----\n"
	s := newStage(t)
	s.put(&core.Secret{ObjectMeta: named("istio-system", "lateen-ca", nil), Data: map[string][]byte{"root-key.pem": []byte(pem)}})
	p := get[*core.Pod](s, "shop", "web-1")
	p.Annotations[core.LastAppliedConfigAnnotation] = secretText
	p.Annotations["example.test/token"] = secretText
	p.Spec.Containers[0].Env = []core.EnvVar{{Name: "DATABASE", Value: secretText}}
	p.Spec.Containers[0].Args = []string{"--with", secretText}
	p.Spec.InitContainers[1].Env = []core.EnvVar{{Name: "POD_NAME", Value: "web-1"}}
	_ = unstructured.SetNestedField(s.custom["web"].Object, secretText, "metadata", "annotations", core.LastAppliedConfigAnnotation)
	_ = unstructured.SetNestedField(s.custom["web"].Object, "Bearer "+secretText, "spec", "headers", "request", "set", "x")
	_ = unstructured.SetNestedField(s.custom["web"].Object, secretText, "spec", "clientSecret")
	s.pages["web-1:15000"]["/config"] = `[{"kind": "secret", "text": "` + strings.ReplaceAll(pem, "\n", `\n`) + `"}, {"password": "` + secretText + `"}]`
	s.pages["web-1:15000"]["/stats/prometheus"] = "requests_total 1\n"
	s.pages["lateend-1:15014"]["/status"] = `{"version": "v1", "warnings": [{"message": "https://me:` + secretText + `@example.test"}]}`
	s.put(&core.Event{
		ObjectMeta: named("shop", "e", nil), Reason: "Failed", Message: "authorization: " + secretText, InvolvedObject: core.ObjectReference{Kind: "Pod", Name: "web-1"},
	})
	var out bytes.Buffer
	g := newGathering(s.world(), &out)
	if err := errors.Join(g.all(t.Context(), 5), g.close()); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out.Bytes())
	for name, text := range files {
		if strings.Contains(text, secretText) {
			t.Errorf("%s tells what is secret:\n%s", name, text)
		}
	}
	for name, has := range map[string]string{
		"check.txt": "checks", "versions.txt": "6.1.0-13-amd64", "installation/deployment-lateend.yaml": "replicas: 1",
		"installation/mutatingwebhook-lateen-sidecar-injector.yaml": "kind: MutatingWebhookConfiguration", "installation/lease-lateend-leader.yaml": "lateend-1_abc",
		"configuration/virtualservices.networking.istio.io.yaml": "kind: VirtualService", "control/lateend-1/status.txt": "v1",
		"proxies/shop/web-1/pod.yaml": "value: web-1", "proxies/shop/web-1/config.txt": "kind", "proxies/shop/web-1/prometheus.txt": "requests_total",
		"proxies/shop/web-1/istio-proxy.log": "fake logs", "events/shop.jsonl": "Failed", "missing.txt": "/edges",
	} {
		if !strings.Contains(files[name], has) {
			t.Errorf("%s: no %q in %q", name, has, files[name])
		}
	}
}

// TestBounds: a report ends somewhere.
func TestBounds(t *testing.T) {
	g := newGathering(newStage(t).world(), io.Discard)
	if err := g.add("long", bytes.Repeat([]byte("x"), 2*reportFileMax)); err != nil || g.size > reportFileMax+100 {
		t.Errorf("%d bytes: %v", g.size, err)
	}
	g.size = reportMax
	if err := g.add("more", []byte("x")); !errors.Is(err, errFull) {
		t.Error(err)
	}
}
