// Package kube keeps the mesh's configuration in Kubernetes: the API server is the store.
//
// In: Services, Pods, EndpointSlices, Nodes and Namespaces, Istio's kinds in
// whatever version is served, and those Secrets that a Gateway or a TLS setting
// names. Out: changes of the picture of the mesh and findings, the same as
// source/dir makes of the same objects. Nothing is told before all of it has
// been read once; from then on each object counts by itself: one with a fault
// keeps its last good version in force, and an API server that is slow or away
// leaves the last picture as it is. It must not know what a proxy is told, and
// is the only home of client-go. Every method of Store may be called
// concurrently.
//
// What is kept in memory is what becomes of an object, not the object: there is
// no cache beside the picture.
package kube

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/fair"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source"
	"github.com/lateen-mesh/lateen/source/attach"
)

// findingsQuiet is how long the configuration must be still before it is looked at as a whole: that costs the more the
// larger the mesh is, and nothing waits for it.
const findingsQuiet = time.Second

// Config is what a Store needs. Cluster is required.
type Config struct {
	// Cluster is the one that holds the configuration: see Reach.
	Cluster *Cluster
	// ClusterDomain is the end of services' full names; empty is cluster.local.
	ClusterDomain string
	// Apply receives what changes in the picture: first everything at once, and then whatever differs, one call at a
	// time. It must not call the Store.
	Apply func(changes []mesh.Change)
	// Found receives all findings whenever they differ, and Report all faults: why objects are not in force as they are
	// written. One call at a time; they must not call the Store.
	Found  func([]source.Finding)
	Report func([]api.Fault)
	// Namespace is where lateend runs, and has its Lease; empty is that of its pod, or istio-system.
	Namespace string
	// Identity is this server's name among those that hold the Lease; empty makes one.
	Identity string
	// Roots returns the mesh's roots as PEM, which are written into every namespace; nil writes none.
	Roots func() []byte
	// Keys, unless empty, names the Secret in this server's namespace with the authority's own keys, which it has read with
	// ReadKeys. UseKeys is called with what is there then, at the start and whenever it may differ, by one goroutine at a
	// time; its error says why they cannot be used. RotateKeys takes the step that is due in the replacement of the root, and
	// returns what the keys, the overlap and the begin of the present half are then; only the begin says whether there is
	// one.
	Keys       string
	UseKeys    func(Keys) error
	RotateKeys func(files map[string][]byte, overlap time.Duration, since time.Time) (map[string][]byte, time.Duration, time.Time, error)
	// Webhook and Validator name the MutatingWebhookConfiguration and the ValidatingWebhookConfiguration of ours in which
	// the roots are kept (caBundle), so that the API server believes us; empty, or without Roots: none.
	Webhook, Validator string
	// Revision is this control plane's, as in the label istio.io/rev.
	Revision string
	// Logger is told what an operator should know; nil discards it.
	Logger *slog.Logger
}

// Store is the configuration in a cluster.
type Store struct {
	config  Config
	log     *slog.Logger
	api     *clients
	wake    chan struct{}
	status  *statusWriter
	ration  flowcontrol.RateLimiter // of what is written besides status
	leader  *elector
	bell    bell          // who writes the roots listens
	judging chan struct{} // one for each object that is judged
	reviews *fair.Line    // of tokens and of rights
	retry   time.Duration // of what could not be written of the roots; a test lengthens it

	mu      sync.Mutex
	picture picture
	feeds   []*feed // all that are watched
	crds    *feed
	defined bool // which kinds are installed was read, and they are among the feeds
	inForce bool // the first picture was told
	held    []mesh.Change
	// attached is what was last told in the status of the Gateway API's objects. standing is how what is deployed for Gateways
	// stands, by their names; nil: the deployer has not looked since this server leads. deploying has it look; nil: this
	// server does not lead.
	attached  *attach.Result
	standing  map[key]attach.Deployed
	deploying func()
	// serving are the Gateways that are deployed, by namespace and account. It is read without mu.
	serving atomic.Pointer[map[string]string]
	since   time.Time
	told    []source.Finding
	refused []api.Fault // why objects are not in force
	unread  []api.Fault // the same of all of a resource
	changed time.Time   // when findings may have changed; zero: they have not
	looked  bool        // findings were looked for once
}

// Open prepares a Store; nothing is asked of the API server before Run.
func Open(c Config) (*Store, error) {
	s := &Store{
		config: c, log: c.Logger, wake: make(chan struct{}, 1), judging: make(chan struct{}, judgesMax), retry: rootsRetry,
		reviews: fair.NewLine(reviewsMax, reviewsFrom, reviewsWaiting),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.api, err = newClients(c.Cluster); err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	s.picture = newPicture(c.ClusterDomain)
	s.status, s.ration = newStatusWriter(s.api, s.log), newRation()
	s.leader = newElector(s.api, s.log, cmp.Or(c.Namespace, ownNamespace()), cmp.Or(c.Identity, ownName()))
	s.crds = s.crdFeed()
	s.feeds = append(s.coreFeeds(), s.crds)
	return s, nil
}

// Run watches until ctx ends, and returns nil then, when everything that it started has ended.
func (s *Store) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	start := func(f *feed) {
		own, stop := context.WithCancel(ctx)
		f.stop = stop
		group.Go(func() { f.run(own) })
	}
	s.mu.Lock()
	for _, f := range s.feeds {
		start(f)
	}
	s.mu.Unlock()
	group.Go(func() { s.leader.run(ctx, s.lead) })
	for _, r := range s.registrations() {
		group.Go(func() { s.vouch(ctx, r) })
	}
	if s.config.Keys != "" {
		group.Go(func() { s.followKeys(ctx) })
	}
	group.Go(func() { s.watchFindings(ctx) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			s.turn(start)
		}
	}
}

// watchFindings looks at the configuration as a whole from time to time, until ctx ends. No change waits for it.
func (s *Store) watchFindings(ctx context.Context) {
	quiet := time.NewTicker(findingsQuiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-quiet.C:
			s.look(now)
		}
	}
}

// lead writes into the cluster until ctx ends.
func (s *Store) lead(ctx context.Context) {
	s.mu.Lock()
	s.standing = nil // another server may have deployed since
	s.state()
	s.mu.Unlock()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { s.status.run(ctx) })
	group.Go(func() { s.deploy(ctx) })
	if s.config.Roots != nil {
		group.Go(func() { s.distribute(ctx) })
		group.Go(func() { s.entrust(ctx) })
	}
	if s.config.Keys != "" {
		group.Go(func() { s.rotate(ctx) })
	}
}

// notice has Run look at what the feeds have.
func (s *Store) notice() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// turn brings what the feeds have into the picture and tells what changes.
func (s *Store) turn(start func(*feed)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follow(start)
	s.report()
	if !s.inForce && !s.complete() {
		return
	}
	t := turn{picture: &s.picture, status: s.status, read: map[api.Ref]*account{}}
	for _, f := range s.feeds {
		if f == s.crds {
			continue // what has come since belongs to follow
		}
		if items, whole := f.take(); len(items) > 0 || whole {
			f.apply(&t, items, whole)
		}
	}
	if t.spaces {
		s.bell.ring()
	}
	changes := t.end()
	if t.configured {
		s.changed = time.Now()
		s.report()
	}
	s.attachments()
	for ref, a := range t.read {
		s.status.read(ref, a)
	}
	s.held = append(s.held, changes...)
	s.refer(start)
	if !s.inForce && !s.complete() {
		return // the Secrets that were just found to be needed
	}
	first := !s.inForce
	if first {
		s.log.Info("the configuration in Kubernetes has been read", "objects", s.picture.set.Len(), "pods", len(s.picture.pods))
		s.inForce = true
		s.state()
		s.redeploy()
	}
	if len(s.held) > 0 || first {
		s.since = time.Now()
		if s.config.Apply != nil {
			s.config.Apply(s.held)
		}
		s.held = nil
	}
}

// complete reports whether every feed has been read once. That the definitions were read is not enough: they may have come
// after follow has looked, so that the feeds of what they define are not there yet.
func (s *Store) complete() bool {
	return s.defined && !slices.ContainsFunc(s.feeds, func(f *feed) bool { return !f.settled() })
}

// look judges the configuration as a whole, once it is still; the first time at once, as no status is written before.
func (s *Store) look(now time.Time) {
	warnings, due := s.still(now)
	if !due {
		return
	}
	findings := append(source.Warnings(warnings), s.copied().Findings()...)
	s.status.found(findings)
	s.mu.Lock()
	same := slices.Equal(findings, s.told)
	s.told = findings
	s.mu.Unlock()
	if !same && s.config.Found != nil {
		s.config.Found(slices.Clone(findings))
	}
}

// still reports whether a look is due, and what was warned of.
func (s *Store) still(now time.Time) (warnings []api.Fault, due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report()
	if !s.inForce || s.changed.IsZero() || s.looked && now.Sub(s.changed) < findingsQuiet {
		return nil, false
	}
	s.changed, s.looked = time.Time{}, true
	return s.picture.warnings(), true
}

// report tells the faults if they differ, and logs of resources why they cannot be read. The caller holds mu.
func (s *Store) report() {
	var unread []api.Fault
	for _, f := range s.feeds {
		if err := f.trouble(); err != nil {
			unread = append(unread, api.Fault{Object: f.name, Message: err.Error()})
		}
	}
	for _, f := range unread {
		if !slices.Contains(s.unread, f) {
			s.log.Warn("the API server does not give what the configuration is made of; trying again", "resource", f.Object, "cause", f.Message)
		}
	}
	s.unread = unread
	if refused := s.picture.faults(); !slices.Equal(refused, s.refused) {
		s.refused = refused
		if s.config.Report != nil {
			s.config.Report(slices.Clone(refused))
		}
	}
}

// Status tells how the configuration stands.
func (s *Store) Status() source.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return source.Status{
		Faults: slices.Concat(s.unread, s.refused), Findings: slices.Clone(s.told), Objects: s.picture.set.Len(), Since: s.since,
	}
}

// List returns the objects in force of a kind, namespace and name; empty is any.
func (s *Store) List(kind, namespace, name string) []*api.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	fits := func(want, is string) bool { return want == "" || strings.EqualFold(want, is) }
	return slices.DeleteFunc(s.picture.set.Objects(), func(o *api.Object) bool {
		_, closed := o.Spec.(*api.Unreadable)
		return closed || !fits(kind, o.Kind) || !fits(namespace, o.Namespace) || !fits(name, o.Name)
	})
}

func compareFaults(a, b api.Fault) int {
	return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Path, b.Path), strings.Compare(a.Message, b.Message))
}
