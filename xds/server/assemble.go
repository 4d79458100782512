package server

import (
	"cmp"
	"maps"
	"slices"
)

// part is what one type contributes to an assembly: what is made, or what is broken.
type part struct {
	typeURL   string
	resources []Resource
	removed   []string // incremental only
	breaks    bool
}

// assemble makes all the answers that are due, or none. They rest on one source and follow each other so that
// nothing points at what is not there: first what appears or changes, clusters before the routes that use them, then
// what vanishes, in the reverse order.
func (st *stream) assemble() []*answer {
	if !st.awaiting {
		return nil
	}
	st.awaiting = false
	var parts []part
	var version string
	st.server.index.read(st, func(source Source, generation uint64, marked map[string]*marks) {
		version = st.server.version(generation)
		parts = st.compare(source, marked)
	})
	st.server.order(parts)
	var answers []*answer
	for _, p := range st.merge(parts) {
		answers = append(answers, st.split(p, version)...)
	}
	st.queued(answers)
	return answers
}

// compare finds what the client has to be told, type by type in the order of making.
func (st *stream) compare(source Source, marked map[string]*marks) []part {
	var parts []part
	for _, typeURL := range slices.SortedFunc(maps.Keys(st.types), st.server.compareTypes) {
		sub, m := st.types[typeURL], marked[typeURL]
		if m == nil && len(sub.due) == 0 && !sub.all {
			continue
		}
		adds, removed, greet := st.examine(source, sub, m)
		st.again(typeURL, adds)
		if st.sotw {
			parts = append(parts, st.world(source, sub, adds, removed, greet)...)
			continue
		}
		if len(adds) > 0 || greet {
			parts = append(parts, part{typeURL: typeURL, resources: adds})
		}
		if len(removed) > 0 {
			parts = append(parts, part{typeURL: typeURL, removed: removed, breaks: true})
		}
	}
	return parts
}

// again makes due what the client waits for after resources of a type have changed (see Config.Again).
func (st *stream) again(typeURL string, changed []Resource) {
	sub := st.types[st.server.config.Again[typeURL]]
	if sub == nil {
		return
	}
	for _, r := range changed {
		if _, named := sub.named[r.Name]; named {
			sub.due[r.Name] = true
		}
	}
}

// examine looks at everything of a type that may have changed for the client, and returns what it has to be told.
// With greet it has to be told even if that is nothing.
func (st *stream) examine(source Source, sub *subscription, m *marks) (adds []Resource, removed []string, greet bool) {
	due := sub.due
	sub.due = agenda{}
	if m != nil {
		for name := range m.names {
			due.add(name)
		}
		if m.flood {
			sub.all = sub.wildcard
			for name := range sub.named {
				due.add(name)
			}
		}
	}
	if sub.wildcard && (sub.all || m != nil && m.set) {
		removed = st.cover(source, sub, due)
	}
	for _, name := range slices.Sorted(maps.Keys(due)) {
		r, add, remove := st.check(source, sub, name, due[name])
		if add {
			adds = append(adds, r)
		}
		if remove {
			removed = append(removed, name)
		}
	}
	greet = sub.greet
	sub.all, sub.greet, sub.initial = false, false, nil
	slices.Sort(removed)
	return adds, slices.Compact(removed), greet
}

// cover brings what the wildcard covers up to date: new names become due, and names that are gone, and not
// subscribed to by themselves, are returned.
func (st *stream) cover(source Source, sub *subscription, due agenda) (removed []string) {
	names := source.Names(st.scope, sub.typeURL)
	added, gone := sub.topic.delta.between(sub.covered, names)
	if sub.all {
		added = names
	}
	sub.covered = names
	for _, name := range added {
		due.add(name)
	}
	for _, name := range gone {
		if _, named := sub.named[name]; named {
			due.add(name)
		} else {
			removed = append(removed, name)
		}
	}
	for name := range sub.initial {
		if _, named := sub.named[name]; !named && !contains(names, name) {
			removed = append(removed, name)
		}
	}
	return removed
}

// check compares what the client knows of a name with what is. With force it is told in any case.
func (st *stream) check(source Source, sub *subscription, name string, force bool) (r Resource, add, remove bool) {
	knows, named := sub.named[name]
	if !named {
		if !sub.wildcard || !contains(sub.covered, name) {
			return Resource{}, false, force
		}
		if version, held := sub.initial[name]; held {
			knows = told{known: true, exists: true, version: version}
		}
	}
	r, exists := source.Resource(Key{Scope: st.scope, Type: sub.typeURL, Name: name})
	if named {
		sub.named[name] = told{known: true, exists: exists, version: r.Version}
	}
	if knows.known && !force && knows.exists == exists && (!exists || knows.version == r.Version) {
		return Resource{}, false, false
	}
	return r, exists, !exists
}

// world turns what has changed into state-of-the-world parts. Most types are sent like incremental ones, except
// that nothing tells a client what vanished. A type that is sent whole vanishes by being left out: then, if other
// resources of it appear at the same time, the old ones are kept in a first response and left out in a second.
func (st *stream) world(source Source, sub *subscription, adds []Resource, removed []string, greet bool) []part {
	makes := part{typeURL: sub.typeURL, resources: adds}
	if !st.server.whole[sub.typeURL] {
		if len(adds) > 0 || greet {
			return []part{makes}
		}
		return nil
	}
	if len(adds)+len(removed) == 0 && !greet {
		return nil
	}
	names := slices.Sorted(maps.Keys(sub.named))
	names = slices.Compact(slices.Sorted(slices.Values(append(names, sub.covered...))))
	exact := part{typeURL: sub.typeURL, breaks: true}
	held := make(map[string]Resource, len(names))
	for _, name := range names {
		if r, ok := source.Resource(Key{Scope: st.scope, Type: sub.typeURL, Name: name}); ok {
			exact.resources = append(exact.resources, r)
			held[name] = r
		}
	}
	var old []Resource
	for _, name := range removed {
		if r, ok := sub.sent[name]; ok {
			old = append(old, r)
		}
	}
	sub.sent = held
	switch {
	case len(adds) == 0 && !greet:
		return []part{exact}
	case len(old) == 0:
		exact.breaks = false
		return []part{exact}
	default:
		makes.resources = slices.Concat(exact.resources, old)
		return []part{makes, exact}
	}
}

// order sorts parts into the order of sending.
func (s *Server) order(parts []part) {
	slices.SortFunc(parts, func(a, b part) int {
		if a.breaks != b.breaks {
			if b.breaks {
				return -1
			}
			return 1
		}
		way := s.compareTypes(a.typeURL, b.typeURL)
		if a.breaks {
			way = -way
		}
		return way
	})
}

// compareTypes puts type URLs into the order of making.
func (s *Server) compareTypes(a, b string) int {
	return cmp.Or(cmp.Compare(s.rankOf(a), s.rankOf(b)), cmp.Compare(a, b))
}

// rankOf is the place of a type in the order of making.
func (s *Server) rankOf(typeURL string) int {
	if rank, ok := s.rank[typeURL]; ok {
		return rank
	}
	return len(s.rank)
}

// merge joins what is made and what is broken of the same type where nothing comes between the two.
func (st *stream) merge(parts []part) []part {
	for i := 1; i < len(parts); i++ {
		made, broken := parts[i-1], parts[i]
		if made.typeURL != broken.typeURL {
			continue
		}
		if !st.sotw {
			broken.resources = made.resources
		}
		return append(append(parts[:i-1:i-1], broken), parts[i+1:]...)
	}
	return parts
}

// resourceOverhead is about what the frame of a resource in a response weighs, in bytes.
const resourceOverhead = 32

// split turns a part into answers. Incremental ones are cut where they get too large.
func (st *stream) split(p part, version string) []*answer {
	most := st.server.config.ResponseMaxBytes
	a := &answer{typeURL: p.typeURL, version: version}
	answers := []*answer{a}
	size := 0
	room := func(n int) {
		if size > 0 && size+n > most && !st.sotw {
			a = &answer{typeURL: p.typeURL, version: version}
			answers = append(answers, a)
			size = 0
		}
		size += n
	}
	for _, r := range p.resources {
		room(len(r.Name) + len(r.Version) + len(p.typeURL) + len(r.Body) + resourceOverhead)
		a.resources = append(a.resources, r)
	}
	for _, name := range p.removed {
		room(len(name) + resourceOverhead)
		a.removed = append(a.removed, name)
	}
	return answers
}
