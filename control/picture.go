package control

import (
	"fmt"
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source"
	"github.com/lateen-mesh/lateen/xds/server"
)

// codeShadowed is the finding about a WorkloadEntry with the name of a workload that has registered itself.
const codeShadowed = "LTN0004"

// configured brings changes of the folder into the picture. What is written goes before what registered itself: such a
// workload shows only where no entry bears its name.
func (c *Control) configured(changes []mesh.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	merged := slices.Clone(changes)
	for i, ch := range changes {
		if ch.Ref.Kind != mesh.KindWorkload {
			continue
		}
		registered := c.registered[ch.Ref]
		if ch.Object == nil {
			delete(c.written, ch.Ref)
			merged[i].Object = registered
			continue
		}
		c.written[ch.Ref] = struct{}{}
		if registered != nil {
			c.log.Warn("an entry of the configuration takes the place of a workload that registered itself", "workload", ch.Ref)
		}
	}
	c.push(merged)
	c.readOnce.Do(func() { close(c.read) })
}

// enrolled brings changes of the registry into the picture.
func (c *Control) enrolled(changes []mesh.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var merged []mesh.Change
	for _, ch := range changes {
		if ch.Object == nil {
			delete(c.registered, ch.Ref)
		} else {
			c.registered[ch.Ref] = ch.Object
		}
		if _, written := c.written[ch.Ref]; !written {
			merged = append(merged, ch)
		}
	}
	c.push(merged)
}

// push makes changes in the picture and tells the proxies. The caller holds mu.
func (c *Control) push(changes []mesh.Change) {
	began := time.Now()
	snap, touched := c.builder.Apply(changes)
	resources := 0
	c.xds.Push(c.source, func() []server.Key {
		keys := c.cache.Set(snap, touched)
		resources = len(keys)
		return c.source.changed(snap, keys)
	})
	if len(changes) > 0 {
		c.log.Info("mesh changed", "snapshot", snap.Version, "objects", snap.Len(), "changes", len(changes), "resources", resources,
			"took", time.Since(began).Round(time.Microsecond))
	}
}

// isWritten reports whether the configuration has an entry for a workload.
func (c *Control) isWritten(ref mesh.Ref) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, written := c.written[ref]
	return written
}

// admit refuses to apply an entry with the name of a workload that has registered itself.
func (c *Control) admit(o *api.Object) error {
	ref := mesh.Ref{Kind: mesh.KindWorkload, Namespace: o.Namespace, Name: o.Name}
	if o.Kind != api.KindWorkloadEntry || !c.registry.has(ref) {
		return nil
	}
	return fmt.Errorf("a running workload has registered under this name; end it with `lateen stop %s -n %s`, or give the entry another name",
		o.Name, o.Namespace)
}

// findings are those of the configuration, and of what in it goes before a workload that has registered itself.
func (c *Control) findings() []source.Finding {
	out := c.store.Status().Findings
	for _, w := range c.registry.list() {
		for _, o := range c.store.List(api.KindWorkloadEntry, w.Namespace, w.ID) {
			out = append(out, source.Finding{Code: codeShadowed, Level: source.LevelWarning, Fault: o.Fault(
				"has the name of a running workload that has registered itself, which gets no traffic while this entry is there; rename one of them")})
		}
	}
	return out
}
