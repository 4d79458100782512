// Package dir keeps the mesh's configuration in a folder of YAML and JSON
// files, for a mesh without Kubernetes.
//
// In: the files, whoever writes them, and objects to apply or delete. Out:
// changes of the picture of the mesh and findings, always for whole sets: a
// folder with a file that cannot be read or is not valid is refused as a whole,
// with every fault told, and the last good set stays in force, also across a
// restart. It must not know what a proxy is told. Every method of Store may be
// called concurrently; they act one after the other.
package dir

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source"
)

// Defaults of Config.
const (
	DefaultQuiet  = 50 * time.Millisecond
	DefaultRescan = 30 * time.Second
)

// Config is what a Store needs. Dir is required.
type Config struct {
	// Dir is the folder, which must be there: see Open. Files ending in .yaml, .yml and .json count, in sub-folders
	// too; names beginning with a dot do not.
	Dir string
	// StateFile keeps the last good copy of the folder and the allocated addresses; empty keeps nothing.
	StateFile string
	// ClusterDomain is the end of services' full names; empty is cluster.local.
	ClusterDomain string
	// Apply receives what changes in the picture, and all findings. It is called for the first set, even an empty one,
	// and then whenever either differs, one call at a time. It must not call the Store.
	Apply func(changes []mesh.Change, findings []source.Finding)
	// Report receives the faults for which the folder is refused, and an empty list when it is good again. It must not
	// call the Store.
	Report func(faults []api.Fault)
	// Admit says why an object that is not in the folder yet may not be applied; nil admits all. It must not call the
	// Store.
	Admit func(*api.Object) error
	// Logger is told what an operator should know; nil discards it.
	Logger *slog.Logger
	// Clock tells the time of source.Status.Since; nil is time.Now.
	Clock func() time.Time
	// Quiet is how long the folder must be still before it is read after a change; 0 is DefaultQuiet.
	Quiet time.Duration
	// Rescan is how often it is read without any notice of change; 0 is DefaultRescan.
	Rescan time.Duration
}

// Store is a folder of configuration.
type Store struct {
	config    Config
	log       *slog.Logger
	addresses *source.Allocator

	mu      sync.Mutex
	set     *source.Set
	files   map[string]*file // as last read, by path in the folder with slashes
	seen    identity         // of the folder as last read
	folder  identity         // of the folder that the set in force, or the last good copy, was read from
	inForce int              // the files of that
	status  source.Status
	applied bool
	saved   []byte // what StateFile holds
}

// Open reads the folder for the first time and calls Apply. If the folder is
// refused, or is not there, it reports that and takes the last good copy from
// StateFile. A folder that is not there and of which there is no copy is an
// error: it is mistyped or not mounted, rather than meant to be empty.
func Open(c Config) (*Store, error) {
	c.Quiet, c.Rescan = cmp.Or(c.Quiet, DefaultQuiet), cmp.Or(c.Rescan, DefaultRescan)
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Dir == "" {
		return nil, errors.New("open a folder of configuration: no folder is named")
	}
	s := &Store{config: c, log: c.Logger, addresses: source.NewAllocator(), files: map[string]*file{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.set = source.New(source.Config{ClusterDomain: c.ClusterDomain, Allocator: s.addresses})
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.restore()
	if _, err := os.ReadDir(c.Dir); err != nil && len(old) == 0 {
		return nil, fmt.Errorf("open the folder of configuration: %w; make it or name another, and if it is on a disk of its own, mount that first", err)
	}
	s.sweep()
	s.reload()
	if len(s.status.Faults) > 0 && old != nil {
		s.fallBack(old)
	}
	if !s.applied {
		s.shut(s.status.Faults[0])
	}
	return s, nil
}

// fallBack puts the last good copy in force.
func (s *Store) fallBack(old []saved) {
	files := map[string]*file{}
	for _, f := range old {
		files[f.Path] = s.parse(f.Path, f.Text)
	}
	w := gather(files)
	if len(w.faults) > 0 {
		s.log.Error("the last good copy of the configuration is refused too; nothing is in force", "file", s.config.StateFile, "first", w.faults[0].String())
		return
	}
	s.log.Warn("the folder is refused; the last good copy is in force", "folder", s.config.Dir, "file", s.config.StateFile)
	faults := s.status.Faults
	s.enforce(w)
	s.status.Faults, s.status.Restored = faults, true
}

// shut denies every request in the mesh as long as nothing is in force, as it is not known what the folder allows.
func (s *Store) shut(why api.Fault) {
	changes := s.set.Replace([]*api.Object{{
		Ref:  api.Ref{Kind: api.KindAuthorizationPolicy, Namespace: api.RootNamespace, Name: "configuration-refused"},
		File: why.File, Line: why.Line, Spec: &api.Unreadable{},
	}})
	s.log.Error("nothing is in force, and every request in the mesh is denied until the folder is good", "folder", s.config.Dir)
	if s.config.Apply != nil {
		s.config.Apply(changes, nil)
	}
}

// Status tells how the folder stands: with faults, it is refused as it is now.
func (s *Store) Status() source.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.status
	out.Faults, out.Findings = slices.Clone(out.Faults), slices.Clone(out.Findings)
	return out
}

// List returns the objects in force of a kind, namespace and name; empty is any.
func (s *Store) List(kind, namespace, name string) []*api.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	fits := func(want, is string) bool { return want == "" || strings.EqualFold(want, is) }
	return slices.DeleteFunc(s.set.Objects(), func(o *api.Object) bool {
		_, closed := o.Spec.(*api.Unreadable)
		return closed || !fits(kind, o.Kind) || !fits(namespace, o.Namespace) || !fits(name, o.Name)
	})
}

// Reload reads the folder now, as Run does by itself.
func (s *Store) Reload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reload()
}

// reload reads the folder and puts it in force if it is good. The caller holds mu.
func (s *Store) reload() {
	files, faults := s.scan()
	w := gather(files)
	w.faults = append(faults, w.faults...)
	s.files = files
	if len(w.faults) == 0 {
		s.folder = s.seen
		s.enforce(w)
		return
	}
	if reflect.DeepEqual(s.status.Faults, w.faults) {
		return
	}
	s.status.Faults = w.faults
	s.log.Error("the folder of configuration is refused; the last good set stays in force",
		"folder", s.config.Dir, "faults", len(w.faults), "first", w.faults[0].String())
	s.report(w.faults)
}

func (s *Store) report(faults []api.Fault) {
	if s.config.Report != nil {
		s.config.Report(slices.Clone(faults))
	}
}

// enforce puts a good set in force. The caller holds mu.
func (s *Store) enforce(w whole) {
	changes := s.set.Replace(w.objects)
	findings := append(source.Warnings(w.warnings), s.set.Findings()...)
	if len(s.status.Faults) > 0 {
		s.log.Info("the folder of configuration is good again", "folder", s.config.Dir)
		s.report(nil)
	}
	differs := !s.applied || len(changes) > 0 || !reflect.DeepEqual(findings, s.status.Findings)
	if len(changes) > 0 || !s.applied {
		s.status.Since = s.config.Clock()
	}
	s.status.Faults, s.status.Findings, s.status.Objects, s.status.Restored = nil, findings, len(w.objects), false
	s.inForce = len(w.files)
	s.save(w.files)
	if differs && s.config.Apply != nil {
		s.config.Apply(changes, slices.Clone(findings))
	}
	s.applied = true
}
