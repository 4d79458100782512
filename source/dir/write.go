package dir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// temporary begins the names of files being written; as hidden files they do not count.
const temporary = ".lateen-"

// The modes of new files. Who may read a file that is there already stays, unless there is a Secret in it.
const (
	modePublic  fs.FileMode = 0o644
	modePrivate fs.FileMode = 0o600
)

// write puts a file in place as a whole: whoever reads sees the old text or the new one, and so does who comes back
// after a crash. Only its owner can read it.
func write(name string, text []byte) error {
	var x exchange
	defer x.clean()
	if err := x.stage(name, text, modePrivate); err != nil {
		return err
	}
	return x.place()
}

// exchange puts files in place of others: all of them, or none unless the process is killed amid place. First all is
// written beside what is there, which is where a disk is full; place only renames.
type exchange struct {
	steps  []step
	made   []string // folders
	placed bool
}

// step is one file's part of an exchange. The names in it are full paths.
type step struct {
	name string
	new  string // what will be there; empty: nothing
	old  string // what was there, aside; empty: nothing
}

// stage prepares that a file holds a text, and is readable for no more than mode says. A link is followed.
func (x *exchange) stage(name string, text []byte, mode fs.FileMode) error {
	if target, err := filepath.EvalSymlinks(name); err == nil {
		name = target
	}
	folder := filepath.Dir(name)
	switch err := os.Mkdir(folder, 0o755); {
	case err == nil:
		x.made = append(x.made, folder)
	case !errors.Is(err, fs.ErrExist):
		return fmt.Errorf("make %s: %w", folder, err)
	}
	s := step{name: name}
	info, err := os.Stat(name)
	if err == nil && info.Mode().IsRegular() {
		was := info.Mode().Perm()
		if mode == modePrivate {
			mode &= was
		} else {
			mode = was
		}
		before, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if s.old, err = aside(folder, before, was); err != nil {
			return err
		}
	}
	s.new, err = aside(folder, text, mode)
	x.steps = append(x.steps, s) // also if it failed, to be cleaned
	return err
}

// stageRemoval prepares that a file, or a link to one, is gone.
func (x *exchange) stageRemoval(name string) error {
	old, err := aside(filepath.Dir(name), nil, modePrivate) // a name to move it to
	x.steps = append(x.steps, step{name: name, old: old})
	return err
}

// aside writes a temporary file for good and returns its name.
func aside(folder string, text []byte, mode fs.FileMode) (string, error) {
	f, err := os.CreateTemp(folder, temporary+"*.tmp")
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// place puts everything in place. After an error everything is as it was; if that does not succeed either, the error
// says so.
func (x *exchange) place() error {
	for i, s := range x.steps {
		var err error
		if s.new == "" {
			err = os.Rename(s.name, s.old)
		} else {
			err = os.Rename(s.new, s.name)
		}
		if err != nil {
			return errors.Join(err, x.undo(x.steps[:i]))
		}
	}
	if err := x.sync(); err != nil {
		return errors.Join(err, x.undo(x.steps))
	}
	x.placed = true
	return nil
}

// undo puts back what the steps have changed.
func (x *exchange) undo(steps []step) error {
	var errs []error
	for _, s := range steps {
		var err error
		if s.old == "" {
			err = os.Remove(s.name)
		} else {
			err = os.Rename(s.old, s.name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("it cannot be taken back, so that a part of the change is there: %w", err))
		}
	}
	return errors.Join(errs...)
}

// sync makes the renames outlive a crash of the machine.
func (x *exchange) sync() error {
	seen := map[string]bool{}
	folders := []string{}
	for _, f := range x.made {
		folders = append(folders, filepath.Dir(f))
	}
	for _, s := range x.steps {
		folders = append(folders, filepath.Dir(s.name))
	}
	for _, f := range folders {
		if seen[f] {
			continue
		}
		seen[f] = true
		if err := syncFolder(f); err != nil {
			return err
		}
	}
	return nil
}

// clean removes what is temporary, and what was made for nothing. What it leaves is removed at the next start.
func (x *exchange) clean() {
	for _, s := range x.steps {
		for _, name := range []string{s.new, s.old} {
			if name != "" {
				_ = os.Remove(name)
			}
		}
	}
	if x.placed {
		return
	}
	for _, f := range x.made {
		_ = os.Remove(f) // only an empty one goes
	}
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
