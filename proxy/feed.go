package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/lateen-mesh/lateen/identity/channel"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/client"
	"github.com/lateen-mesh/lateen/xds/native"
)

// namesEvery is how often the names in use are written down.
const namesEvery = 30 * time.Second

// dialer opens the xDS stream over the channel to the control plane.
type dialer struct{ c *channel.Channel }

func (d dialer) OpenStream(ctx context.Context, method string) (client.Stream, error) {
	return d.c.Stream(ctx, method, nil)
}

// feed brings what the control plane sends into the table.
type feed struct{ p *Proxy }

// Update takes a response into the table, but for those resources of it that cannot be understood or obeyed.
func (f feed) Update(typeURL string, added []client.Resource, removed []string) error {
	kind, ok := native.KindOf(typeURL)
	if !ok {
		return fmt.Errorf("type %q is unknown to this proxy", typeURL)
	}
	refused := client.Refused{}
	resources := make([]plan.Resource, 0, len(added))
	for _, r := range added {
		res, err := native.Decode(kind, r.Body)
		switch {
		case err != nil:
			err = fmt.Errorf("%s %q: %w", kind, r.Name, err)
		case res.ResourceName() != r.Name:
			err = fmt.Errorf("%s %q calls itself %q", kind, r.Name, res.ResourceName())
		default:
			resources = append(resources, res)
			continue
		}
		refused[r.Name] = err
		f.p.table.Refuse(kind, r.Name, err)
	}
	maps.Copy(refused, f.p.table.Update(kind, resources, removed))
	if len(refused) == 0 {
		return nil
	}
	f.p.cfg.Logger.Warn("orders refused; the last good ones stay in force", "cause", refused)
	return refused
}

// Connected notes whether the control plane is there.
func (f feed) Connected(ok bool) {
	if !ok {
		f.p.lostAt.Store(time.Now().UnixNano())
	}
	f.p.connected.Store(ok)
}

func (p *Proxy) subscribe(kind plan.Kind, names ...string) {
	if err := p.xds.Subscribe(native.TypeURL(kind), names...); err != nil {
		p.logs.loops.Warn("a name is not asked for", "kind", kind, "names", names, "cause", err)
	}
}

func (p *Proxy) unsubscribe(kind plan.Kind, names ...string) {
	p.xds.Unsubscribe(native.TypeURL(kind), names...)
}

// node describes the proxy to the control plane, with Istio's metadata keys.
func (p *Proxy) node() client.Node {
	c := &p.cfg
	addr := ""
	if len(c.Addresses) > 0 {
		addr = c.Addresses[0].String()
	}
	kind := "sidecar"
	if c.Role == RoleGateway {
		kind = "router"
	}
	ports := map[string]string{}
	for name, n := range c.Ports {
		ports[name] = fmt.Sprint(n)
	}
	var ips []string
	for _, a := range c.Addresses {
		ips = append(ips, a.String())
	}
	return client.Node{
		ID: kind + "~" + addr + "~" + c.Name + "." + c.Namespace + "~" + c.Namespace + ".svc.cluster.local",
		Metadata: map[string]any{
			"NAME": c.Name, "NAMESPACE": c.Namespace, "SERVICE_ACCOUNT": c.ServiceAccount, "LABELS": c.Labels,
			"WORKLOAD_NAME": c.Workload.Name, "INSTANCE_IPS": ips, "PORTS": ports, "LOCALITY": c.Locality,
		},
	}
}

// preload asks for the names that the last run used, before anybody waits for them.
func (p *Proxy) preload() {
	if p.cfg.NamesFile == "" {
		return
	}
	text, err := os.ReadFile(p.cfg.NamesFile)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			p.cfg.Logger.Warn("the names used before are not known", "cause", err)
		}
		return
	}
	var byText map[string][]string
	if err := json.Unmarshal(text, &byText); err != nil {
		p.cfg.Logger.Warn("the names used before are not known", "file", p.cfg.NamesFile, "cause", err)
		return
	}
	names := map[plan.Kind][]string{}
	for _, k := range plan.Kinds() {
		names[k] = byText[k.String()]
	}
	p.table.Preload(names)
}

// rememberNames writes the names in use down, now and then and at the end.
func (p *Proxy) rememberNames(ctx context.Context) error {
	if p.cfg.NamesFile == "" {
		return nil
	}
	tick := time.NewTicker(namesEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.writeNames()
		case <-ctx.Done():
			p.writeNames()
			return nil
		}
	}
}

func (p *Proxy) writeNames() {
	names := map[string][]string{}
	for k, list := range p.table.Roots() {
		names[k.String()] = list
	}
	text, err := json.Marshal(names)
	if err != nil {
		return
	}
	tmp := p.cfg.NamesFile + ".new"
	if err := os.MkdirAll(filepath.Dir(tmp), 0o700); err == nil {
		if err = os.WriteFile(tmp, text, 0o600); err == nil {
			err = os.Rename(tmp, p.cfg.NamesFile)
		}
		if err != nil {
			p.cfg.Logger.Warn("the names in use are not remembered", "cause", err)
		}
	}
}
