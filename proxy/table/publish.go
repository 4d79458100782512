package table

import (
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
)

// publish makes a new view of everything in force. The caller holds mu.
func (t *Table) publish() {
	t.dirty = false
	old := t.view.Load()
	v := &view{
		listeners: map[string]*rooted[*Listener]{}, routes: map[string]*rooted[*Route]{}, names: map[string]*rooted[*plan.Name]{},
		clusters: map[string]*balance.Cluster{}, secrets: map[string]*plan.Secret{},
	}
	for _, name := range builtinNames {
		v.clusters[name] = old.clusters[name]
	}
	// What is referred to comes before what refers to it.
	for _, kind := range []plan.Kind{plan.KindSecret, plan.KindCluster, plan.KindRoute, plan.KindListener, plan.KindName} {
		for r, e := range t.entries {
			if r.kind == kind && e.settled {
				t.enter(v, e)
			}
		}
	}
	t.view.Store(v)
	t.serial.Add(1)
}

// enter puts what is in force of an entry into a view, compiling it if need be.
func (t *Table) enter(v *view, e *entry) {
	state := Ready
	if e.inForce == nil {
		state, e.value = Absent, nil
	}
	switch e.kind {
	case plan.KindSecret:
		if s, ok := e.inForce.(*plan.Secret); ok {
			v.secrets[e.name] = s
		}
	case plan.KindCluster:
		if p, ok := e.inForce.(*plan.Cluster); ok {
			v.clusters[e.name] = t.cluster(e, p)
		}
	case plan.KindRoute:
		p, ok := e.inForce.(*plan.Route)
		if ok && t.stale(e) {
			e.value, e.built = newRoute(p, v), t.serial.Load()+1
		}
		if e.root {
			r, _ := e.value.(*Route)
			v.routes[e.name] = &rooted[*Route]{r, state, e}
		}
	case plan.KindListener:
		p, ok := e.inForce.(*plan.Listener)
		if ok && t.stale(e) {
			e.value, e.built = t.newListener(p, v), t.serial.Load()+1
		}
		if e.root {
			l, _ := e.value.(*Listener)
			v.listeners[e.name] = &rooted[*Listener]{l, state, e}
		}
	case plan.KindName:
		if e.root {
			n, _ := e.inForce.(*plan.Name)
			v.names[e.name] = &rooted[*plan.Name]{n, state, e}
		}
	case plan.KindEndpoints: // in their cluster
	}
}

// cluster puts a cluster into operation, with its endpoints.
func (t *Table) cluster(e *entry, p *plan.Cluster) *balance.Cluster {
	c, _ := e.value.(*balance.Cluster)
	if c != nil && c.Plan() == p {
		return c
	}
	if c != nil && c.Plan().Discovery != p.Discovery {
		c = nil // its endpoints came from elsewhere
	}
	c = balance.New(p, c)
	e.value, e.built = c, t.serial.Load()+1
	if d := t.entries[ref{plan.KindEndpoints, e.name}]; d != nil && p.Discovery == plan.DiscoverEndpoints {
		t.setEndpoints(d)
	}
	return c
}

// setEndpoints gives the endpoints in force to the cluster that is in operation, and reports whether there is one.
func (t *Table) setEndpoints(e *entry) bool {
	d := t.entries[ref{plan.KindCluster, e.name}]
	if d == nil {
		return false
	}
	c, _ := d.value.(*balance.Cluster)
	if c == nil || c.Plan().Discovery != plan.DiscoverEndpoints {
		return false
	}
	var list []plan.Endpoint
	if eps, ok := e.inForce.(*plan.Endpoints); ok {
		list = eps.Endpoints
	}
	c.SetEndpoints(list)
	return true
}

// stale reports whether an entry has to be compiled: because of itself or of what it refers to. Endpoints and
// secrets are looked up when they are needed.
func (t *Table) stale(e *entry) bool {
	if e.value == nil || e.changed > e.built {
		return true
	}
	for _, r := range e.inForceRefs {
		if r.kind == plan.KindEndpoints || r.kind == plan.KindSecret {
			continue
		}
		if d := t.entries[r]; d == nil || max(d.changed, d.built) > e.built {
			return true
		}
	}
	return false
}
