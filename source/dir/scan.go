package dir

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/lateen-mesh/lateen/api"
)

// Bounds of a folder; one that holds more is refused.
const (
	maxFiles = 20_000
	maxDepth = 16
	maxBytes = 512 << 20
)

// file is one file as it was read.
type file struct {
	text   []byte
	result api.Result
}

// whole is all files together.
type whole struct {
	files    map[string]*file
	objects  []*api.Object
	faults   []api.Fault
	warnings []api.Fault
}

// gather joins the files' objects; two of one name are a fault.
func gather(files map[string]*file) whole {
	w := whole{files: files}
	first := map[api.Ref]*api.Object{}
	for _, p := range slices.Sorted(maps.Keys(files)) {
		r := files[p].result
		w.faults = append(w.faults, r.Faults...)
		w.warnings = append(w.warnings, r.Warnings...)
		for _, o := range r.Objects {
			if before := first[o.Ref]; before != nil && before.File != o.File {
				w.faults = append(w.faults, o.Fault(fmt.Sprintf("is also in %s:%d; remove one", before.File, before.Line)))
				continue
			}
			first[o.Ref] = o
			w.objects = append(w.objects, o)
		}
	}
	return w
}

// parse decodes a file, or returns what it was decoded to before if it is the same.
func (s *Store) parse(name string, text []byte) *file {
	if old := s.files[name]; old != nil && bytes.Equal(old.text, text) {
		return old
	}
	return &file{text, api.Decode(filepath.Join(s.config.Dir, filepath.FromSlash(name)), text)}
}

// counts reports whether a name is that of a file of configuration: not hidden, not an editor's.
func counts(name string) bool {
	return !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "#") &&
		slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(path.Ext(name)))
}

// scan reads the folder.
func (s *Store) scan() (map[string]*file, []api.Fault) {
	t := &tour{store: s, files: map[string]*file{}}
	s.seen = identify(s.config.Dir)
	t.folder("", 0)
	if len(t.files)+len(t.faults) == 0 && s.inForce > 0 && s.seen != s.folder {
		t.faults = append(t.faults, api.Fault{File: s.config.Dir, Message: "is empty, and is another folder than the one that the last good " +
			"configuration was read from; if its disk is not mounted, mount it; if the mesh is to be empty, put an empty file none.yaml into it"})
	}
	return t.files, t.faults
}

// identity tells a folder from another one of the same name, such as the empty one below a disk that is not mounted
// any more.
type identity struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// identify returns a folder's identity, the zero one if there is no folder.
func identify(dir string) identity {
	info, err := os.Stat(dir)
	if err != nil {
		return identity{}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{stat.Dev, stat.Ino}
}

// tour is one way through the folder.
type tour struct {
	store  *Store
	files  map[string]*file
	bytes  int64
	faults []api.Fault
}

func (t *tour) fault(name string, err error) {
	t.faults = append(t.faults, api.Fault{File: filepath.Join(t.store.config.Dir, name), Message: fmt.Sprintf("cannot be read: %v", err)})
}

func (t *tour) folder(name string, depth int) {
	if depth > maxDepth {
		t.fault(name, fmt.Errorf("folders are nested more than %d deep", maxDepth))
		return
	}
	entries, err := os.ReadDir(filepath.Join(t.store.config.Dir, filepath.FromSlash(name)))
	if err != nil {
		if depth == 0 || !os.IsNotExist(err) {
			t.fault(name, err)
		}
		return
	}
	for _, e := range entries {
		p := path.Join(name, e.Name())
		switch {
		case e.IsDir() && !strings.HasPrefix(e.Name(), "."):
			t.folder(p, depth+1)
		case !e.IsDir() && counts(e.Name()):
			t.file(p)
		}
	}
}

// file reads one file, through a symbolic link if it is one. A file that went away meanwhile is none.
func (t *tour) file(name string) {
	text, err := readFile(filepath.Join(t.store.config.Dir, filepath.FromSlash(name)))
	switch {
	case os.IsNotExist(err):
		return
	case err != nil:
		t.fault(name, err)
		return
	case text == nil:
		return
	}
	if t.bytes += int64(len(text)); t.bytes > maxBytes || len(t.files) >= maxFiles {
		if len(t.faults) == 0 {
			t.fault(name, fmt.Errorf("the folder has more than %d files or %d MiB", maxFiles, maxBytes>>20))
		}
		return
	}
	t.files[name] = t.store.parse(name, text)
}

// readFile reads a regular file, one byte beyond what api accepts at most; nil if it is not a regular file.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, api.MaxFileBytes+1))
	if text == nil {
		text = []byte{}
	}
	return text, cmp.Or(err, f.Close())
}
