package dir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// state is what StateFile holds, as JSON.
type state struct {
	// Allocations are the virtual addresses given: source.Allocator's Snapshot.
	Allocations map[string]uint16 `json:"allocations"`
	// Files are the last good copy of the folder.
	Files []saved `json:"files"`
}

type saved struct {
	Path string `json:"path"` // in the folder, with slashes
	Text []byte `json:"text"`
}

// restore reads StateFile: the addresses take effect at once, the files are returned.
func (s *Store) restore() []saved {
	if s.config.StateFile == "" {
		return nil
	}
	raw, err := os.ReadFile(s.config.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var st state
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil {
		s.log.Warn("the saved state cannot be read; addresses of services may change", "file", s.config.StateFile, "cause", err)
		return nil
	}
	s.saved = raw
	s.addresses.Restore(st.Allocations)
	return st.Files
}

// save writes StateFile if what it says differs. A failure is told, and tried again with the next set.
func (s *Store) save(files map[string]*file) {
	if s.config.StateFile == "" {
		return
	}
	st := state{Allocations: s.addresses.Snapshot()}
	for _, p := range slices.Sorted(maps.Keys(files)) {
		st.Files = append(st.Files, saved{p, files[p].text})
	}
	raw, err := json.Marshal(st)
	if err == nil {
		if bytes.Equal(raw, s.saved) {
			return
		}
		err = write(s.config.StateFile, raw, 0o600) // it may hold keys
	}
	if err != nil {
		s.log.Warn("the state cannot be saved; a restart while the folder is refused would start empty", "file", s.config.StateFile, "cause", err)
		return
	}
	s.saved = raw
}

// temporary begins the names of files being written; as hidden files they do not count.
const temporary = ".lateen-"

// write puts a file in place as a whole: whoever reads sees the old text or the new one, and so does who comes back
// after a crash.
func write(name string, text []byte, mode os.FileMode) error {
	folder := filepath.Dir(name)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", folder, err)
	}
	if info, err := os.Stat(name); err == nil {
		mode = info.Mode().Perm()
	}
	if target, err := filepath.EvalSymlinks(name); err == nil {
		name, folder = target, filepath.Dir(target)
	}
	f, err := os.CreateTemp(folder, temporary+"*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(f.Name())))
	}
	return syncFolder(folder)
}

// remove takes a file away for good.
func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncFolder(filepath.Dir(name))
}

func syncFolder(folder string) error {
	d, err := os.Open(folder)
	if err != nil {
		return fmt.Errorf("sync %s: %w", folder, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", folder, err)
	}
	return nil
}

// sweep removes what a crash between writing and renaming has left.
func (s *Store) sweep() {
	err := filepath.WalkDir(s.config.Dir+"/.", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasPrefix(d.Name(), temporary) && strings.HasSuffix(d.Name(), ".tmp") {
			return os.Remove(p)
		}
		return nil
	})
	if err != nil {
		s.log.Warn("a temporary file cannot be removed", "folder", s.config.Dir, "cause", err)
	}
}
