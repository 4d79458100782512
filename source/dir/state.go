package dir

import (
	"bytes"
	"encoding/json"
	"errors"
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
	// Folder is the one that they were read from.
	Folder identity `json:"folder"`
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
	s.folder, s.inForce = st.Folder, len(st.Files)
	return st.Files
}

// save writes StateFile if what it says differs. A failure is told, and tried again with the next set.
func (s *Store) save(files map[string]*file) {
	if s.config.StateFile == "" {
		return
	}
	st := state{Allocations: s.addresses.Snapshot(), Folder: s.folder}
	for _, p := range slices.Sorted(maps.Keys(files)) {
		st.Files = append(st.Files, saved{p, files[p].text})
	}
	raw, err := json.Marshal(st)
	if err == nil {
		if bytes.Equal(raw, s.saved) {
			return
		}
		err = write(s.config.StateFile, raw) // it may hold keys
	}
	if err != nil {
		s.log.Warn("the state cannot be saved; a restart while the folder is refused would start empty", "file", s.config.StateFile, "cause", err)
		return
	}
	s.saved = raw
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
