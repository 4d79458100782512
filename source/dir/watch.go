package dir

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// patience is how many quiet periods a folder that does not come to rest is waited for.
const patience = 20

// Run watches the folder until ctx ends, and returns nil then. Where the
// kernel gives no notice of changes, the folder is still read every
// Config.Rescan.
func (s *Store) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w; raise fs.inotify.max_user_instances", s.config.Dir, err)
	}
	s.watch(w)
	s.Reload() // what changed since Open, or while the watch was set up
	err = s.follow(ctx, w)
	if closing := w.Close(); err == nil {
		err = closing
	}
	return err
}

func (s *Store) follow(ctx context.Context, w *fsnotify.Watcher) error {
	rescan := time.NewTicker(s.config.Rescan)
	defer rescan.Stop()
	quiet := time.NewTimer(s.config.Quiet)
	quiet.Stop()
	defer quiet.Stop()
	waiting := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return fmt.Errorf("watch %s: the watch ended", s.config.Dir)
			}
			if !s.matters(e) {
				continue
			}
			if waiting++; waiting < patience {
				quiet.Reset(s.config.Quiet)
			}
		case err, ok := <-w.Errors:
			if !ok {
				return fmt.Errorf("watch %s: the watch ended", s.config.Dir)
			}
			s.log.Warn("notices of changes were lost; reading the folder again", "folder", s.config.Dir, "cause", err)
			quiet.Reset(s.config.Quiet)
		case <-quiet.C:
			waiting = 0
			s.watch(w)
			s.Reload()
		case <-rescan.C:
			s.watch(w)
			s.Reload()
		}
	}
}

// matters reports whether an event can change what the folder says: hidden names do not, but for the link that swaps a
// whole set (..data).
func (s *Store) matters(e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	return e.Op != fsnotify.Chmod && (name == "..data" || !strings.HasPrefix(name, "."))
}

// watch adds the folder and its sub-folders; those that are watched already stay so.
func (s *Store) watch(w *fsnotify.Watcher) {
	root := s.config.Dir + "/." // a link to a folder is followed
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // it went away; its parent's watch told so
		case !d.IsDir():
			return nil
		case p != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		}
		return w.Add(p)
	})
	if err != nil {
		s.log.Warn("a folder cannot be watched; it is read from time to time only", "folder", s.config.Dir, "every", s.config.Rescan, "cause", err)
	}
}
