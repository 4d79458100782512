package table

import (
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/balance"
)

// publish makes a new view of everything in force. The caller holds mu.
func (t *Table) publish() {
	t.dirty = false
	serial := t.serial.Load() + 1
	v := &view{
		listeners: map[string]*rooted[*Listener]{}, routes: map[string]*rooted[*Route]{}, names: map[string]*rooted[*plan.Name]{},
		clusters: builtinOf(t.view.Load()), secrets: map[string]*plan.Secret{},
	}
	// In the order of the kinds, so that what is referred to is there before what refers to it.
	entries := sorted(t.entries)
	for _, e := range entries {
		if e.kind == plan.KindCluster {
			if c := t.cluster(e); c != nil {
				v.clusters[e.name] = c
			}
		}
	}
	for _, e := range entries {
		if s, ok := e.inForce.(*plan.Secret); ok {
			v.secrets[e.name] = s
		}
	}
	for _, e := range entries {
		if e.kind == plan.KindRoute && e.settled {
			r := t.route(e, v)
			if e.root {
				v.routes[e.name] = &rooted[*Route]{r, e}
			}
		}
	}
	for _, e := range entries {
		if !e.root || !e.settled {
			continue
		}
		switch e.kind {
		case plan.KindListener:
			v.listeners[e.name] = &rooted[*Listener]{t.listener(e, v), e}
		case plan.KindName:
			n, _ := e.inForce.(*plan.Name)
			v.names[e.name] = &rooted[*plan.Name]{n, e}
		}
	}
	t.view.Store(v)
	t.serial.Store(serial)
}

func builtinOf(v *view) map[string]*balance.Cluster {
	out := map[string]*balance.Cluster{}
	for _, name := range []string{plan.ClusterPassthrough, plan.ClusterInboundPassthrough, plan.ClusterBlackHole} {
		out[name] = v.clusters[name]
	}
	return out
}

// cluster puts the cluster in force into operation, with its endpoints; nil if there is none.
func (t *Table) cluster(e *entry) *balance.Cluster {
	p, _ := e.inForce.(*plan.Cluster)
	if p == nil {
		e.value, e.compiled = nil, nil
		return nil
	}
	c, _ := e.value.(*balance.Cluster)
	if e.compiled != e.inForce {
		c = balance.New(p, c)
		e.value, e.compiled, e.built = c, e.inForce, t.serial.Load()+1
	}
	d := t.entries[ref{plan.KindEndpoints, e.name}]
	if d == nil || d.compiled == d.inForce && d.built >= e.built && d.built != 0 {
		return c
	}
	var list []plan.Endpoint
	if eps, ok := d.inForce.(*plan.Endpoints); ok {
		list = eps.Endpoints
	}
	c.SetEndpoints(list)
	d.compiled, d.built = d.inForce, t.serial.Load()+1
	return c
}

// stale reports whether an entry has to be compiled: because of itself or of what it refers to.
func (t *Table) stale(e *entry) bool {
	if e.compiled != e.inForce || e.value == nil {
		return true
	}
	for _, r := range refs(e.inForce) {
		if r.kind == plan.KindEndpoints {
			continue
		}
		if d := t.entries[r]; d == nil || d.built > e.built || d.inForce == nil {
			return true
		}
	}
	return false
}

func (t *Table) route(e *entry, v *view) *Route {
	p, _ := e.inForce.(*plan.Route)
	if p == nil {
		e.value, e.compiled = nil, nil
		return nil
	}
	if t.stale(e) {
		e.value, e.compiled, e.built = newRoute(p, v), e.inForce, t.serial.Load()+1
	}
	return e.value.(*Route)
}

func (t *Table) listener(e *entry, v *view) *Listener {
	p, _ := e.inForce.(*plan.Listener)
	if p == nil {
		e.value, e.compiled = nil, nil
		return nil
	}
	if t.stale(e) {
		e.value, e.compiled, e.built = t.newListener(p, v), e.inForce, t.serial.Load()+1
	}
	return e.value.(*Listener)
}
