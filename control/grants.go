package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sync"

	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/identity"
)

// grantsMax bounds the workloads that tokens were made for.
const grantsMax = 100_000

// grants says what the owners of join tokens may claim to be. A certificate
// proves a service account only; who has it may say that it is any workload of
// that account, but not one that a token was made for by name, and not a
// gateway, which gets the namespace's TLS keys, unless a token said so.
type grants struct {
	path string

	mu       sync.Mutex
	Accounts map[string]account  `json:"accounts"` // by "namespace/service account"
	Names    map[string]workload `json:"names"`    // by "namespace/name"
}

// account is what the workloads of a service account may be.
type account struct {
	Gateway bool `json:"gateway"`
}

// workload is what the workload of a name must be.
type workload struct {
	ServiceAccount string            `json:"serviceAccount"`
	Gateway        bool              `json:"gateway"`
	Labels         map[string]string `json:"labels,omitempty"` // nil: any
}

func newGrants(path string) (*grants, error) {
	g := &grants{path: path, Accounts: map[string]account{}, Names: map[string]workload{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return g, nil
	}
	if err == nil {
		err = json.Unmarshal(text, g)
	}
	if err != nil {
		return nil, fmt.Errorf("read who may be what: %w", err)
	}
	return g, nil
}

// allow notes what a token was made for. name is empty for a token that names an account only.
func (g *grants) allow(namespace, serviceAccount, name string, gateway bool, labels map[string]string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.Names)+len(g.Accounts) >= grantsMax {
		return fmt.Errorf("%d workloads and accounts are known already; remove %s and restart the control plane", grantsMax, g.path)
	}
	key := namespace + "/" + serviceAccount
	if name != "" {
		g.Names[namespace+"/"+name] = workload{serviceAccount, gateway, labels}
		if _, known := g.Accounts[key]; !known {
			g.Accounts[key] = account{}
		}
	} else {
		g.Accounts[key] = account{Gateway: g.Accounts[key].Gateway || gateway}
	}
	text, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if err := os.WriteFile(g.path+".new", text, 0o600); err != nil {
		return fmt.Errorf("note what the token is for: %w", err)
	}
	return os.Rename(g.path+".new", g.path)
}

// knows reports whether a token of ours was made for a node, by name or by account.
func (g *grants) knows(n *node) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, named := g.Names[n.id.Namespace+"/"+n.name]
	_, account := g.Accounts[n.id.Namespace+"/"+n.id.ServiceAccount]
	return named || account
}

// check holds what a proven node says of itself against what tokens were made for.
func (g *grants) check(n *node, id identity.ID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	gateway := n.asker.Role == compile.Gateway
	if w, named := g.Names[id.Namespace+"/"+n.name]; named && n.asker.Role != compile.GRPC {
		switch {
		case w.ServiceAccount != id.ServiceAccount:
			return fmt.Errorf("workload %s/%s belongs to service account %s, not to %s", id.Namespace, n.name, w.ServiceAccount, id.ServiceAccount)
		case gateway != w.Gateway:
			return fmt.Errorf("workload %s/%s was admitted in another role (gateway: %t)", id.Namespace, n.name, w.Gateway)
		case w.Labels != nil && !maps.Equal(w.Labels, map[string]string(n.asker.Labels)):
			return fmt.Errorf("workload %s/%s was admitted with other labels", id.Namespace, n.name)
		}
		return nil
	}
	a, known := g.Accounts[id.Namespace+"/"+id.ServiceAccount]
	if !known {
		return fmt.Errorf("no token was ever made for %s here; make one with `lateen token create`", id)
	}
	if gateway && !a.Gateway {
		return fmt.Errorf("%s may not be a gateway; make its token with `lateen token create --gateway`", id)
	}
	return nil
}
