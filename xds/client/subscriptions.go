package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"unicode/utf8"
)

const (
	// typesMax bounds the resource types of a client.
	typesMax = 64
	// nameMaxBytes bounds a name: names come from requests of strangers, such as a Host header.
	nameMaxBytes = 2 << 10
	// requestMaxBytes bounds the names of a request, since servers take 4 MiB unless told otherwise. Names beyond it
	// follow in another request, which may not tell the versions held any more.
	requestMaxBytes = 3 << 20
	// nameOverhead is about what the frame of a name in a request weighs, in bytes.
	nameOverhead = 16
)

// subscriptions is what the data plane wants, which versions it holds of that, and what of it the server of the
// present stream has not been told yet. All methods may be called concurrently.
type subscriptions struct {
	max     int
	changed chan struct{} // holds one token while something waits to be told

	mu    sync.Mutex
	types map[string]*interest
	order []string // the types in the order of their first subscription
}

// interest is the part of one type.
type interest struct {
	names       map[string]*want
	covered     map[string]string   // versions of resources held only because of the wildcard
	subscribe   map[string]struct{} // to be told
	unsubscribe map[string]struct{} // to be told
	opened      bool                // the server of the present stream has heard of this type
}

// want is one subscription. A name that is given up and wanted again gets a new one, so that a response that was
// under way for the old one is not taken for an answer to the new one.
type want struct {
	told    bool   // the server of the present stream knows
	version string // of the resource held; empty when there is none
}

func newSubscriptions(limit int) subscriptions {
	return subscriptions{max: limit, changed: make(chan struct{}, 1), types: map[string]*interest{}}
}

// add subscribes to names, or to none of them if a limit would be broken.
func (s *subscriptions) add(typeURL string, names []string) error {
	if typeURL == "" {
		return errors.New("subscribe: the type URL is empty")
	}
	for _, name := range names {
		if name == "" || len(name) > nameMaxBytes || !utf8.ValidString(name) {
			return fmt.Errorf("subscribe to %q of %s: a name has 1 to %d bytes of UTF-8", name[:min(len(name), 64)], typeURL, nameMaxBytes)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.types[typeURL]
	if in == nil {
		if len(s.types) >= typesMax {
			return fmt.Errorf("subscribe to %s: the limit of %d types is reached", typeURL, typesMax)
		}
		in = &interest{names: map[string]*want{}, subscribe: map[string]struct{}{}, unsubscribe: map[string]struct{}{}}
	}
	fresh := map[string]struct{}{}
	for _, name := range names {
		if in.names[name] == nil {
			fresh[name] = struct{}{}
		}
	}
	if len(in.names)+len(fresh) > s.max {
		return fmt.Errorf("subscribe to %d more names of %s: the limit is %d; unsubscribe from names out of use", len(fresh), typeURL, s.max)
	}
	if len(fresh) == 0 {
		return nil
	}
	if s.types[typeURL] == nil {
		s.types[typeURL] = in
		s.order = append(s.order, typeURL)
	}
	for name := range fresh {
		w := &want{version: in.covered[name]}
		if _, told := in.unsubscribe[name]; told {
			// The server still believes in the old subscription. It answers a name that is subscribed to anew.
			delete(in.unsubscribe, name)
			w.told = true
		}
		delete(in.covered, name)
		in.names[name] = w
		in.subscribe[name] = struct{}{}
	}
	s.signal()
	return nil
}

// remove gives up names. Those not subscribed to are ignored.
func (s *subscriptions) remove(typeURL string, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.types[typeURL]
	if in == nil {
		return
	}
	for _, name := range names {
		w := in.names[name]
		if w == nil {
			continue
		}
		delete(in.names, name)
		delete(in.subscribe, name)
		if w.told {
			in.unsubscribe[name] = struct{}{}
		}
		switch {
		case name == Wildcard:
			in.covered = nil
		case in.wildcard() && w.version != "":
			in.cover(name, w.version)
		}
	}
	s.signal()
}

// await returns true as soon as there is a subscription, or false if the context ended first.
func (s *subscriptions) await(ctx context.Context) bool {
	for {
		if ctx.Err() != nil {
			return false
		}
		s.mu.Lock()
		wanted := slices.ContainsFunc(s.order, func(typeURL string) bool { return len(s.types[typeURL].names) > 0 })
		s.mu.Unlock()
		if wanted {
			return true
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
		}
	}
}

// restart prepares for a new stream, whose server knows nothing.
func (s *subscriptions) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = slices.DeleteFunc(s.order, func(typeURL string) bool {
		if len(s.types[typeURL].names) > 0 {
			return false
		}
		delete(s.types, typeURL)
		return true
	})
	for _, in := range s.types {
		in.opened = false
		clear(in.unsubscribe)
		for name, w := range in.names {
			w.told = false
			in.subscribe[name] = struct{}{}
		}
	}
}

// pending takes what the server has to be told: one request per type, or several if one would get too large.
func (s *subscriptions) pending() []*request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var requests []*request
	for _, typeURL := range s.order {
		in := s.types[typeURL]
		for len(in.subscribe)+len(in.unsubscribe) > 0 {
			requests = append(requests, in.take(typeURL))
		}
	}
	return requests
}

// answer makes the request that accepts or refuses a response, and takes along what the server has to be told of
// the same type. It returns nil for a type that was never subscribed to on this stream: a first request without
// names would subscribe to everything.
func (s *subscriptions) answer(r *response, refusal error) *request {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.types[r.typeURL]
	if in == nil || !in.opened {
		return nil
	}
	out := in.take(r.typeURL)
	out.nonce = r.nonce
	if refusal != nil {
		out.refusal = refusal.Error()
		if out.refusal == "" {
			out.refusal = "refused without a reason"
		}
	}
	return out
}

// take moves what has to be told into a request, as far as it has room.
func (in *interest) take(typeURL string) *request {
	r := &request{typeURL: typeURL}
	room := requestMaxBytes
	for _, name := range slices.Sorted(maps.Keys(in.unsubscribe)) {
		if room < 0 {
			break
		}
		r.unsubscribe = append(r.unsubscribe, name)
		delete(in.unsubscribe, name)
		room -= len(name) + nameOverhead
	}
	if !in.opened {
		r.initial = map[string]string{}
	}
	for _, name := range slices.Sorted(maps.Keys(in.subscribe)) {
		if room < 0 {
			break
		}
		r.subscribe = append(r.subscribe, name)
		delete(in.subscribe, name)
		w := in.names[name]
		w.told = true
		room -= len(name) + nameOverhead + r.hold(name, w.version)
	}
	for name, version := range in.covered {
		if in.opened || room < 0 {
			break
		}
		room -= r.hold(name, version)
	}
	in.opened = true
	return r
}

// hold adds a version to a first request, and returns what that weighs.
func (r *request) hold(name, version string) int {
	if r.initial == nil || version == "" {
		return 0
	}
	r.initial[name] = version
	return len(name) + len(version) + 2*nameOverhead
}

func (in *interest) wildcard() bool { return in.names[Wildcard] != nil }

func (in *interest) cover(name, version string) {
	if in.covered == nil {
		in.covered = map[string]string{}
	}
	in.covered[name] = version
}

// delivery is the part of a response that the data plane wants.
type delivery struct {
	added   []Resource
	removed []string
	wants   []*want // of each added resource; nil when only the wildcard covers it
	gone    []*want // of each removed name; likewise
}

// wanted picks from a response what is subscribed to. It returns nil when there is nothing to hand over.
func (s *subscriptions) wanted(r *response) *delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.types[r.typeURL]
	if in == nil || !in.opened {
		return nil
	}
	d := &delivery{}
	for _, resource := range r.resources {
		if w := in.names[resource.Name]; w != nil || in.wildcard() {
			d.added = append(d.added, resource)
			d.wants = append(d.wants, w)
		}
	}
	for _, name := range r.removed {
		if w := in.names[name]; w != nil || in.wildcard() {
			d.removed = append(d.removed, name)
			d.gone = append(d.gone, w)
		}
	}
	if len(d.added)+len(d.removed) == 0 && len(r.resources)+len(r.removed) > 0 {
		return nil
	}
	return d
}

// hold remembers the versions of what was accepted.
func (s *subscriptions) hold(typeURL string, d *delivery, refused Refused) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.types[typeURL]
	for i, resource := range d.added {
		switch {
		case refused[resource.Name] != nil:
		case d.wants[i] != nil:
			d.wants[i].version = resource.Version
		case in.wildcard():
			in.cover(resource.Name, resource.Version)
		}
	}
	for i, name := range d.removed {
		if d.gone[i] != nil {
			d.gone[i].version = ""
		}
		delete(in.covered, name)
	}
}

// signal wakes the session. The lock is held.
func (s *subscriptions) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}
