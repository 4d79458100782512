// Package layout says where everything of a test cluster is: its addresses, names, files.
//
// In comes the cluster's name and number, out come values. Two clusters that differ in both share nothing, so that they
// run side by side and may later be joined. The package must not touch the machine. A Layout is an immutable value.
package layout

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
)

const (
	// DefaultName is the cluster of a person, by `make cluster`.
	DefaultName = "lateen"
	// DefaultFolder holds a folder for each cluster that is up. On a disk: the images of three nodes are some 0.5 GB.
	DefaultFolder = "/var/tmp/lateen-cluster"
	// DefaultNodes is what a cluster needs to show what nodes differ in.
	DefaultNodes = 3
	// MaxNodes is what the addresses have room for.
	MaxNodes = 100
	// MaxNumber is the highest number of a cluster, for the same reason.
	MaxNumber = 99

	firstPort = 26443
	firstNode = 10
	firstPods = 100
	// half is where a cluster's pods end and its Services begin.
	half = 128
)

var nameShape = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// Layout is one cluster.
type Layout struct {
	// Name tells it from the others of the machine: a label of DNS, at most 32 bytes.
	Name string `json:"name"`
	// Number, at most MaxNumber, decides its addresses.
	Number int `json:"number"`
	// Nodes is how many there are; they are counted from 1. Without any there is a control plane alone.
	Nodes int `json:"nodes"`
	// Folder is its own, removed with it.
	Folder string `json:"folder"`
	// Logs has a file for each component.
	Logs string `json:"logs"`
	// Programs is the folder with kubeall, coredns and pause.
	Programs string `json:"programs"`
}

// Validate says what cannot be.
func (l Layout) Validate() error {
	switch {
	case !nameShape.MatchString(l.Name):
		return fmt.Errorf("name %q: use at most 32 lower-case letters, digits and dashes", l.Name)
	case l.Number < 0 || l.Number > MaxNumber:
		return fmt.Errorf("number %d: use 0 to %d", l.Number, MaxNumber)
	case l.Nodes < 0 || l.Nodes > MaxNodes:
		return fmt.Errorf("%d nodes: use 0 to %d", l.Nodes, MaxNodes)
	}
	return nil
}

// Port is the API server's, on the machine's loopback interface as well as in the cluster's network. Only one process can
// listen there, so the port is also the claim of the number.
func (l Layout) Port() int { return firstPort + l.Number }

// Server is the URL of the API server, from the machine and from the cluster's network.
func (l Layout) Server() string { return fmt.Sprintf("https://127.0.0.1:%d", l.Port()) }

// Machines is the network of the control plane and the nodes.
func (l Layout) Machines() netip.Prefix { return prefix(172, 30, l.Number, 24) }

// ControlPlane is the address of the API server on that network.
func (l Layout) ControlPlane() netip.Addr { return address(172, 30, l.Number, 1) }

// Node is the address of node n.
func (l Layout) Node(n int) netip.Addr { return address(172, 30, l.Number, firstNode+n) }

// Balancers is where Services of type LoadBalancer get their addresses.
func (l Layout) Balancers() netip.Prefix { return prefix(172, 31, l.Number, 24) }

// Pods is the network of node n's pods.
func (l Layout) Pods(n int) netip.Prefix { return prefix(10, firstPods+l.Number, n, 24) }

// AllPods is the network of all nodes' pods.
func (l Layout) AllPods() netip.Prefix { return prefix(10, firstPods+l.Number, 0, 17) }

// Services is the network of cluster addresses.
func (l Layout) Services() netip.Prefix { return prefix(10, firstPods+l.Number, half, 17) }

// APIService and DNS are the cluster addresses of the Services kubernetes and kube-dns.
func (l Layout) APIService() netip.Addr { return address(10, firstPods+l.Number, half, 1) }

// DNS is the cluster address of the name server.
func (l Layout) DNS() netip.Addr { return address(10, firstPods+l.Number, half, 10) }

// NodeName is the name of node n, in Kubernetes and as its host name.
func (l Layout) NodeName(n int) string { return fmt.Sprintf("node%d", n) }

// NodeRoot is the folder that node n has for its root; only what is written there outlives its restart.
func (l Layout) NodeRoot(n int) string { return filepath.Join(l.Folder, l.NodeName(n)) }

// Kubeconfig is the administrator's.
func (l Layout) Kubeconfig() string { return filepath.Join(l.Folder, "kubeconfig") }

// Socket is where the cluster takes orders.
func (l Layout) Socket() string { return filepath.Join(l.Folder, "orders") }

// Program is the path of one of ours.
func (l Layout) Program(name string) string { return filepath.Join(l.Programs, name) }

// Log is the file for what a component writes.
func (l Layout) Log(component string) string { return filepath.Join(l.Logs, component+".log") }

func address(a, b, c, d int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)})
}

func prefix(a, b, c, bits int) netip.Prefix { return netip.PrefixFrom(address(a, b, c, 0), bits) }
