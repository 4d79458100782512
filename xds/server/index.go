package server

import (
	"runtime"
	"slices"
	"sync"
)

// index finds the streams that subscribe to a key, and holds the source that answers them.
//
// Its lock is taken before a stream's, and before the source's own. Push holds it while the source changes and streams
// are marked, and a stream shares it from when it takes its marks until it has asked the source for all that it tells,
// so that an answer is of one version throughout.
type index struct {
	seats chan struct{} // of those who read

	mu         sync.RWMutex
	source     Source
	generation uint64 // counts pushes
	topics     map[topicKey]*topic
	streams    map[*stream]struct{}
	drained    bool
}

// topicKey names all resources of a type that the clients of a scope share.
type topicKey struct {
	scope, typeURL string
}

// topic is who subscribes to what of a topicKey.
type topic struct {
	named     map[string]*subject
	wildcards map[*stream]struct{}
	delta     namesDelta
}

// subject is one resource that somebody subscribes to by name. All of them share its copy of the name.
type subject struct {
	name    string
	streams map[*stream]struct{}
}

func newIndex(source Source) index {
	return index{
		seats:  make(chan struct{}, runtime.GOMAXPROCS(0)),
		source: source, topics: map[topicKey]*topic{}, streams: map[*stream]struct{}{},
	}
}

// push replaces the source, has it change, marks what changed, and reports whether the source is the first one.
func (x *index) push(next Source, change func() []Key) (first bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	first = x.source == nil
	x.source = next
	x.generation++
	for _, k := range change() {
		t := x.topics[topicKey{k.Scope, k.Type}]
		if t == nil {
			continue
		}
		if k.Name != "" {
			if subject := t.named[k.Name]; subject != nil {
				for st := range subject.streams {
					st.mark(k.Type, subject.name)
				}
			}
		}
		for st := range t.wildcards {
			st.mark(k.Type, k.Name)
		}
	}
	return first
}

// current returns the source, to ask for a scope.
func (x *index) current() Source {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.source
}

// read calls assemble with the source as it is at one generation, and with what has changed for a stream up to it. No
// more streams than there are processors do so at once: they only compute, and a push waits for those that have begun.
func (x *index) read(st *stream, assemble func(Source, uint64, map[string]*marks)) {
	x.seats <- struct{}{}
	defer func() { <-x.seats }()
	x.mu.RLock()
	defer x.mu.RUnlock()
	assemble(x.source, x.generation, st.takeMarks())
}

// join lists a stream, or reports false if the server drains.
func (x *index) join(st *stream) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.drained {
		x.streams[st] = struct{}{}
	}
	return !x.drained
}

// part takes a stream off the list.
func (x *index) part(st *stream) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.streams, st)
}

// drain tells all streams to end.
func (x *index) drain() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.drained {
		return
	}
	x.drained = true
	for st := range x.streams {
		close(st.quit)
	}
}

// follow subscribes a stream to names of a type, to the wildcard, or both. It returns the topic, and the names as
// all streams share them.
func (x *index) follow(st *stream, typeURL string, names []string, wildcard bool) (*topic, []string) {
	key := topicKey{st.scope, typeURL}
	shared := make([]string, 0, len(names))
	x.mu.Lock()
	defer x.mu.Unlock()
	t := x.topics[key]
	if t == nil {
		t = &topic{named: map[string]*subject{}, wildcards: map[*stream]struct{}{}}
		x.topics[key] = t
	}
	for _, name := range names {
		s := t.named[name]
		if s == nil {
			s = &subject{name: name, streams: map[*stream]struct{}{}}
			t.named[name] = s
		}
		s.streams[st] = struct{}{}
		shared = append(shared, s.name)
	}
	if wildcard {
		t.wildcards[st] = struct{}{}
	}
	return t, shared
}

// leave ends subscriptions of a stream. What nobody subscribes to any more is forgotten.
func (x *index) leave(st *stream, typeURL string, names []string, wildcard bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	t := x.topics[topicKey{st.scope, typeURL}]
	if t == nil {
		return
	}
	for _, name := range names {
		s := t.named[name]
		if s == nil {
			continue
		}
		delete(s.streams, st)
		if len(s.streams) == 0 {
			delete(t.named, name)
		}
	}
	if wildcard {
		delete(t.wildcards, st)
	}
	if len(t.named)+len(t.wildcards) == 0 {
		delete(x.topics, topicKey{st.scope, typeURL})
	}
}

// namesDelta remembers the last comparison of two sets of names, which the streams of a topic mostly ask for alike.
type namesDelta struct {
	mu          sync.Mutex
	from, to    []string
	added, gone []string
}

// between compares two sorted sets of names.
func (d *namesDelta) between(from, to []string) (added, gone []string) {
	if same(from, to) {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !same(d.from, from) || !same(d.to, to) {
		d.from, d.to = from, to
		d.added, d.gone = compareNames(from, to)
	}
	return d.added, d.gone
}

// same reports whether two slices are one and the same.
func same(a, b []string) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// compareNames merges two sorted sets.
func compareNames(from, to []string) (added, gone []string) {
	for len(from) > 0 && len(to) > 0 {
		switch {
		case from[0] == to[0]:
			from, to = from[1:], to[1:]
		case from[0] < to[0]:
			gone, from = append(gone, from[0]), from[1:]
		default:
			added, to = append(added, to[0]), to[1:]
		}
	}
	return append(added, to...), append(gone, from...)
}

// contains reports whether a sorted set has a name.
func contains(sorted []string, name string) bool {
	_, found := slices.BinarySearch(sorted, name)
	return found
}

// release calls forget for the keys that no stream subscribes to, under the lock.
func (x *index) release(keys []Key, forget func(Key)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, k := range keys {
		t := x.topics[topicKey{k.Scope, k.Type}]
		if t == nil || len(t.wildcards) == 0 && t.named[k.Name] == nil {
			forget(k)
		}
	}
}
