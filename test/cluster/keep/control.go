package keep

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/lateen-mesh/lateen/test/cluster/pki"
)

// users are the control plane's clients of the API server.
var users = map[string]pki.Subject{
	"kube-controller-manager": {Name: "system:kube-controller-manager"},
	"kube-scheduler":          {Name: "system:kube-scheduler"},
}

// secret is the path of one of the control plane's files.
func (k *Keeper) secret(name string) string { return filepath.Join(k.cfg.Layout.Folder, "pki", name) }

// writeSecrets makes the certificates and kubeconfigs of the control plane and of the administrator.
func (k *Keeper) writeSecrets() error {
	l := k.cfg.Layout
	if err := os.MkdirAll(k.secret(""), 0o700); err != nil {
		return fmt.Errorf("write certificates: %w", err)
	}
	signing, err := pki.SigningKey()
	if err != nil {
		return err
	}
	server, err := k.authority.Issue(pki.Subject{
		Name: "kube-apiserver",
		Hosts: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		},
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), l.ControlPlane(), l.APIService()},
	})
	if err != nil {
		return err
	}
	admin, err := k.authority.Issue(pki.Subject{Name: "admin", Group: "system:masters"})
	if err != nil {
		return err
	}
	files := map[string][]byte{
		l.Kubeconfig():                 k.authority.Kubeconfig(l.Name, l.Server(), admin),
		k.secret("ca.crt"):             k.authority.PEM.Certificate,
		k.secret("ca.key"):             k.authority.PEM.Key,
		k.secret("accounts.pub"):       signing.Certificate,
		k.secret("accounts.key"):       signing.Key,
		k.secret("kube-apiserver.crt"): server.Certificate,
		k.secret("kube-apiserver.key"): server.Key,
		k.secret("admin.crt"):          admin.Certificate,
		k.secret("admin.key"):          admin.Key,
	}
	for name, subject := range users {
		pair, err := k.authority.Issue(subject)
		if err != nil {
			return err
		}
		files[k.secret(name+".conf")] = k.authority.Kubeconfig(l.Name, l.Server(), pair)
	}
	for path, text := range files {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return fmt.Errorf("write certificates: %w", err)
		}
	}
	return nil
}

// startControlPlane returns when the API server is ready.
func (k *Keeper) startControlPlane(ctx context.Context) error {
	l := k.cfg.Layout
	const store = "http://127.0.0.1:2379"
	const peer = "http://127.0.0.1:2380"
	// The store need not outlive the machine, so that it need not wait for the disk.
	if err := k.component("etcd", "--data-dir="+filepath.Join(l.Folder, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+store, "--advertise-client-urls="+store, "--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer, "--log-level=warn"); err != nil {
		return err
	}
	if err := k.component("kube-apiserver", "--etcd-servers="+store, "--advertise-address="+l.ControlPlane().String(),
		"--secure-port="+strconv.Itoa(l.Port()), "--service-cluster-ip-range="+l.Services().String(),
		"--client-ca-file="+k.secret("ca.crt"), "--tls-cert-file="+k.secret("kube-apiserver.crt"),
		"--tls-private-key-file="+k.secret("kube-apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+k.secret("accounts.pub"),
		"--service-account-signing-key-file="+k.secret("accounts.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--kubelet-client-certificate="+k.secret("admin.crt"), "--kubelet-client-key="+k.secret("admin.key"),
		"--kubelet-certificate-authority="+k.secret("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		// It runs on no node, so that cluster addresses mean nothing to it: webhooks are called at their endpoints.
		"--enable-aggregator-routing=true", "--profiling=false"); err != nil {
		return err
	}
	if err := poll(ctx, "the API server", func(ctx context.Context) (bool, error) {
		err := k.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		return err == nil, err
	}); err != nil {
		return fmt.Errorf("%w; the last lines of its log:\n%s", err, tail(l.Log("kube-apiserver")))
	}
	k.progress("the API server is ready")
	for name, args := range map[string][]string{
		"kube-controller-manager": {
			"--service-account-private-key-file=" + k.secret("accounts.key"),
			"--root-ca-file=" + k.secret("ca.crt"), "--cluster-signing-cert-file=" + k.secret("ca.crt"),
			"--cluster-signing-key-file=" + k.secret("ca.key"), "--use-service-account-credentials=true",
			"--allocate-node-cidrs=false",
			// Nodes report every 2 s (see kubelet.yaml), so that one that is gone need not be waited for as long.
			"--node-monitor-grace-period=20s",
		},
		"kube-scheduler": nil,
	} {
		conf := k.secret(name + ".conf")
		args = append(args, "--kubeconfig="+conf, "--authentication-kubeconfig="+conf, "--authorization-kubeconfig="+conf,
			"--leader-elect=false", "--profiling=false")
		if err := k.component(name, args...); err != nil {
			return err
		}
	}
	return k.apply(ctx, addOns)
}

// component starts a part of the control plane, without which the cluster cannot go on.
func (k *Keeper) component(name string, args ...string) error {
	cmd := exec.Command(k.cfg.Layout.Program("kubeall"), args...)
	cmd.Args[0] = name // by which kubeall knows what to be
	p, err := k.spawn(name, cmd)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.components = append(k.components, p)
	go func() {
		<-p.done
		k.fail(p.ended())
	}()
	return nil
}
