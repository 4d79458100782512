package kube

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/api"
)

func secretText(name, value string) string {
	return "apiVersion: v1\nkind: Secret\nmetadata: {name: " + name + ", namespace: " + api.RootNamespace + "}\ndata: {key: " +
		base64.StdEncoding.EncodeToString([]byte(value)) + "}\n"
}

// TestReadKeys: the first of many servers brings the keys, all others get the same, and those of cacerts count before.
func TestReadKeys(t *testing.T) {
	s := newServer(t)
	read := func(mine string) Keys {
		got, err := ReadKeys(t.Context(), s.cluster(), "own", func() (map[string][]byte, error) { return map[string][]byte{"key": []byte(mine)}, nil })
		if err != nil {
			t.Error(err)
		}
		return got
	}
	var group sync.WaitGroup
	got := make([]string, 16)
	for i := range got {
		group.Go(func() { got[i] = string(read("of " + strings.Repeat("x", i)).Files["key"]) })
	}
	group.Wait()
	for _, x := range got {
		if x != got[0] {
			t.Fatalf("two keys: %q", got)
		}
	}
	s.apply(secretText(PluggedSecret, "theirs"))
	if k := read("mine"); k.Secret != api.RootNamespace+"/cacerts" || string(k.Files["key"]) != "theirs" {
		t.Errorf("%+v", k)
	}
	roots := func(by string) {
		s.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + RootsName + ", namespace: " + api.RootNamespace +
			", managedFields: [{manager: " + by + "}]}\ndata: {" + RootsKey + ": roots}\n")
	}
	if roots("pilot-discovery"); read("mine").Trusted != nil {
		t.Error("the roots of Istio, whose place is taken, count")
	}
	if roots(userAgent); string(read("mine").Trusted) != "roots" || read("mine").Forced {
		t.Errorf("%+v", read("mine"))
	}
	s.apply(strings.Replace(secretText(PluggedSecret, "theirs"), "metadata: {", "metadata: {annotations: {"+AnnotationForce+": \"true\"}, ", 1))
	if !read("mine").Forced {
		t.Error("the annotation is not read")
	}
}

// TestKeys: every server follows its keys, cacerts before its own, and says once what is wrong with them; the leader takes
// the steps of a rotation.
func TestKeys(t *testing.T) {
	s := newServer(t)
	s.apply(secretText("own", "1"))
	var mu sync.Mutex
	var used string
	var log bytes.Buffer
	use := func(k Keys) error {
		mu.Lock()
		defer mu.Unlock()
		if string(k.Files["key"]) == "bad" {
			return errors.New("key: it is bad")
		}
		used = k.Secret + " " + string(k.Files["key"])
		return nil
	}
	rotate := func(files map[string][]byte, overlap time.Duration, since time.Time) (map[string][]byte, time.Duration, time.Time, error) {
		switch {
		case overlap == 0:
			return files, overlap, since, nil
		case since.IsZero():
			return map[string][]byte{"key": []byte("half")}, overlap, time.Unix(1e9, 0), nil
		case overlap == time.Hour:
			return files, overlap, since, nil
		}
		return map[string][]byte{"key": []byte("whole")}, 0, time.Time{}, nil
	}
	store, err := Open(Config{Cluster: s.cluster(), Keys: "own", UseKeys: use, RotateKeys: rotate, Logger: slog.New(slog.NewTextHandler(&lockedWriter{mu: &mu, w: &log}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	store.retry = 10 * time.Millisecond
	r := &rig{t: t, server: s, Store: store}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	has := func(what string) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return used == api.RootNamespace+"/"+what }
	}
	logged := func(what string) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return strings.Contains(log.String(), what) }
	}
	r.await("its own", has("own 1"))
	s.apply(secretText(PluggedSecret, "2"))
	r.await("cacerts", has("cacerts 2"))
	s.apply(secretText(PluggedSecret, "bad"))
	r.await("the fault", logged("key: it is bad"))
	s.apply(secretText(PluggedSecret, "3"))
	r.await("good ones again", has("cacerts 3"))
	s.remove("Secret", api.RootNamespace+"/"+PluggedSecret)
	r.await("its own again", has("own 1"))

	annotate := func(overlap string) {
		o := s.get("Secret", api.RootNamespace+"/own")
		m := metadataOf(o)
		if m["annotations"] == nil {
			m["annotations"] = object{}
		}
		m["annotations"].(object)[AnnotationRotate] = overlap
		s.put(o)
	}
	annotate("soon")
	r.await("the annotation is wrong", logged("how long the old root and the new one are to overlap"))
	annotate("1h")
	r.await("the first half", has("own half"))
	if m := metadataOf(s.get("Secret", api.RootNamespace+"/own"))["annotations"].(object); m[AnnotationRotate] != "1h0m0s" || m[annotationRotated] != "2001-09-09T01:46:40Z" {
		t.Errorf("annotations %v", m)
	}
	annotate("1s")
	r.await("the end", has("own whole"))
	if m, _ := metadataOf(s.get("Secret", api.RootNamespace+"/own"))["annotations"].(object); len(m) > 0 {
		t.Errorf("annotations %v", m)
	}
	s.remove("Secret", api.RootNamespace+"/own")
	r.await("the loss is told", logged("is gone"))
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(log.String(), "it is bad"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &log)
	}
}

// TestKeysAreNoCredentials: a Gateway that names the authority's Secrets gets others only.
func TestKeysAreNoCredentials(t *testing.T) {
	s := newServer(t)
	s.define()
	for _, name := range []string{"own", PluggedSecret, "web"} {
		s.apply(secretText(name, name))
	}
	s.apply("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: " + api.RootNamespace + "}\nspec: {selector: {istio: edge}, servers: [" +
		"{port: {number: 1, name: a, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: own}}," +
		"{port: {number: 2, name: b, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: cacerts}}," +
		"{port: {number: 3, name: c, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: web}}]}\n")
	store, err := Open(Config{
		Cluster: s.cluster(), Keys: "own", UseKeys: func(Keys) error { return nil },
		RotateKeys: func(files map[string][]byte, d time.Duration, since time.Time) (map[string][]byte, time.Duration, time.Time, error) {
			return files, d, since, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, server: s, Store: store}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	r.await("the credential", func() bool { return len(r.List(api.KindSecret, api.RootNamespace, "web")) == 1 })
	if all := r.List(api.KindSecret, "", ""); len(all) != 1 {
		t.Errorf("%d Secrets were read, with the authority's keys", len(all))
	}
}

// lockedWriter writes under a lock that somebody else holds to read.
type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
