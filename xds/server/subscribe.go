package server

import (
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// wildcard is the name that subscribes to all resources of a type which the source lists.
const wildcard = "*"

// subscription is what a stream wants of one type, and what its client has of it. It belongs to the goroutine of
// the stream.
type subscription struct {
	typeURL string
	topic   *topic

	named    map[string]told // subscribed to by name
	wildcard bool
	listed   bool     // a state-of-the-world request has listed names: an empty list no longer means the wildcard
	covered  []string // what the wildcard covers, as the client has been told; sorted

	// What the next assembly has to look at besides the marks.
	due     agenda
	all     bool              // everything that the wildcard covers
	greet   bool              // the wildcard must be answered even if it covers nothing
	initial map[string]string // versions that the client said to hold of what the wildcard covers

	sent map[string]Resource // the last state-of-the-world response, of a type that is sent whole
}

// agenda lists names to look at. A name is true if it must be answered even if the client is known to be up to date.
type agenda map[string]bool

// add lists a name, and leaves it as it is if it is listed.
func (a agenda) add(name string) {
	if !a[name] {
		a[name] = false
	}
}

// told is what the client knows about a name.
type told struct {
	known   bool // it has been told something
	exists  bool
	version string
}

// take applies a request.
func (st *stream) take(r *request) error {
	if r.typeURL == "" {
		return status.Error(codes.InvalidArgument, "a request has no type_url")
	}
	sub := st.types[r.typeURL]
	first := sub == nil
	if first {
		if len(st.types) >= typesMax {
			return status.Errorf(codes.ResourceExhausted, "the limit of %d resource types is reached", typesMax)
		}
		sub = &subscription{typeURL: r.typeURL, named: map[string]told{}, due: agenda{}}
		st.types[r.typeURL] = sub
	}
	defer st.reckon(sub)
	if stale := st.acknowledge(r); stale {
		return nil
	}
	if st.sotw {
		return st.replace(sub, r)
	}
	return st.amend(sub, r, first)
}

// amend applies an incremental request. A first request that names nothing subscribes to the wildcard.
func (st *stream) amend(sub *subscription, r *request, first bool) error {
	legacy := first && len(r.subscribe)+len(r.unsubscribe) == 0
	names, all := withoutWildcard(r.unsubscribe)
	st.drop(sub, names, all)
	names, all = withoutWildcard(r.subscribe)
	var initial map[string]string
	if first {
		initial = r.initial
	}
	return st.follow(sub, names, all || legacy, initial)
}

// replace applies a state-of-the-world request, which lists everything that is wanted. An empty list subscribes to
// the wildcard until names have been listed once.
func (st *stream) replace(sub *subscription, r *request) error {
	names, all := withoutWildcard(r.names)
	if len(r.names) > 0 {
		sub.listed = true
	} else if !sub.listed {
		all = true
	}
	slices.Sort(names)
	names = slices.Compact(names)
	var lost []string
	for name := range sub.named {
		if !contains(names, name) {
			lost = append(lost, name)
		}
	}
	st.drop(sub, lost, sub.wildcard && !all)
	fresh := slices.DeleteFunc(names, func(name string) bool {
		_, old := sub.named[name]
		return old
	})
	return st.follow(sub, fresh, all && !sub.wildcard, nil)
}

// withoutWildcard splits the wildcard from the other names, into a new slice.
func withoutWildcard(names []string) (others []string, all bool) {
	others = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == wildcard })
	return others, len(others) < len(names)
}

// follow subscribes to names, to the wildcard, or both. What the client holds according to initial is only sent if
// it has changed; anything else is answered, even if it had been subscribed to before, since a client may have
// forgotten what it had.
func (st *stream) follow(sub *subscription, names []string, all bool, initial map[string]string) error {
	if len(names) == 0 && !all {
		return nil
	}
	fresh := 0
	for _, name := range names {
		if name == "" || len(name) > nameMaxBytes {
			return status.Errorf(codes.InvalidArgument,
				"a resource name of type %s has %d bytes, it must have 1 to %d", sub.typeURL, len(name), nameMaxBytes)
		}
		if _, old := sub.named[name]; !old {
			fresh++
		}
	}
	if st.names+fresh > st.server.config.SubscriptionsMax {
		return status.Errorf(codes.ResourceExhausted,
			"node %.128q subscribes to more than the limit of %d names; narrow what it sees, or raise the limit",
			st.client.Node.ID, st.server.config.SubscriptionsMax)
	}
	topic, shared := st.server.index.follow(st, sub.typeURL, names, all)
	sub.topic = topic
	before := len(sub.named)
	for _, name := range shared {
		version, held := initial[name]
		switch _, old := sub.named[name]; {
		case old:
			sub.due[name] = true
		case held:
			sub.named[name] = told{known: true, exists: true, version: version}
			sub.due[name] = false
		default:
			sub.named[name] = told{}
			sub.due[name] = true
		}
	}
	st.names += len(sub.named) - before
	if all {
		if sub.wildcard {
			for name := range sub.named {
				sub.due[name] = true
			}
		}
		sub.wildcard, sub.all, sub.initial = true, true, initial
		sub.greet = len(initial) == 0
	}
	st.awaiting = true
	return nil
}

// drop ends subscriptions. A name that the wildcard may still cover is answered once more, since the client cannot
// know whether it does.
func (st *stream) drop(sub *subscription, names []string, all bool) {
	if all && sub.wildcard {
		sub.wildcard, sub.all, sub.greet, sub.covered, sub.initial = false, false, false, nil, nil
	} else {
		all = false
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		_, old := sub.named[name]
		return !old
	})
	if len(names) == 0 && !all {
		return
	}
	before := len(sub.named)
	for _, name := range names {
		delete(sub.named, name)
		if sub.wildcard && !st.sotw {
			sub.due[name] = true
			st.awaiting = true
		} else {
			delete(sub.due, name)
		}
	}
	st.names -= before - len(sub.named)
	st.server.index.leave(st, sub.typeURL, names, all)
}
