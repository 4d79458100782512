package kube

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	auth "k8s.io/api/authentication/v1"
	authz "k8s.io/api/authorization/v1"
	lease "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lateen-mesh/lateen/api"
)

// accountFolder is where a pod finds the credentials of its service account.
const accountFolder = "/var/run/secrets/kubernetes.io/serviceaccount"

// userAgent is what the API server's log calls us.
const userAgent = "lateend"

// clients talk to the API server. Kubernetes' own kinds come as protobuf, and the little that is
// written goes as JSON; typed clients of client-go would link, and
// register at each start, the types of all its API groups.
type clients struct {
	core, discovery, lease, auth, authz rest.Interface
	dynamic                             dynamic.Interface
	metadata                            metadata.Interface
}

// Cluster is a Kubernetes cluster: where its API server is, and with what credentials we talk to it.
type Cluster struct{ config *rest.Config }

func newClients(at *Cluster) (*clients, error) {
	if at == nil {
		return nil, errors.New("no API server is named; give --kubeconfig, or run in a pod with a service account")
	}
	c := rest.CopyConfig(at.config)
	c.UserAgent = userAgent
	c.QPS = -1 // the API server has limits of its own, and what we write is rationed where it is written, what others have us ask in review.go
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, discovery.AddToScheme, lease.AddToScheme, auth.AddToScheme, authz.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	out := &clients{}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	for _, x := range []struct {
		into *rest.Interface
		gv   schema.GroupVersion
	}{
		{&out.core, core.SchemeGroupVersion},
		{&out.discovery, discovery.SchemeGroupVersion},
		{&out.lease, lease.SchemeGroupVersion},
		{&out.auth, auth.SchemeGroupVersion},
		{&out.authz, authz.SchemeGroupVersion},
	} {
		own := rest.CopyConfig(c)
		own.GroupVersion, own.NegotiatedSerializer, own.APIPath = &x.gv, codecs, "/apis"
		own.ContentType, own.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
		if x.gv.Group == "" {
			own.APIPath = "/api"
		}
		client, err := rest.RESTClientFor(own)
		if err != nil {
			return nil, err
		}
		*x.into = client
	}
	var err error
	if out.dynamic, err = dynamic.NewForConfig(c); err != nil {
		return nil, err
	}
	out.metadata, err = metadata.NewForConfig(c)
	return out, err
}

// InCluster reports whether this process is a pod that has a service account.
func InCluster() bool {
	_, err := os.Stat(accountFolder + "/token")
	return !errors.Is(err, fs.ErrNotExist) && os.Getenv("KUBERNETES_SERVICE_HOST") != ""
}

// ownNamespace is that of the pod that this process is, else the one of a mesh.
func ownNamespace() string {
	text, err := os.ReadFile(accountFolder + "/namespace")
	if name := strings.TrimSpace(string(text)); err == nil && name != "" {
		return name
	}
	return api.RootNamespace
}

// ownName is a name that no other server has: that of the pod or machine, and something by chance.
func ownName() string {
	host, err := os.Hostname()
	if err != nil {
		host = userAgent
	}
	return host + "_" + rand.Text()
}

// Reach finds the API server as kubectl does: by the file kubeconfig, or where that is empty by those of the variable
// KUBECONFIG or ~/.kube/config, in its context of that name, or the current one. A pod without a file reaches its own
// cluster.
func Reach(kubeconfig, context string) (*Cluster, error) {
	if kubeconfig == "" && context == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" && InCluster() {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("reach the API server of this cluster: %w", err)
		}
		return &Cluster{c}, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	return &Cluster{c}, nil
}
