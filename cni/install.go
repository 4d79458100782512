package cni

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Where container runtimes look, and where libcni, which they call plugins with, keeps what it has told them.
const (
	defaultLists    = "/etc/cni/net.d"
	defaultPrograms = "/opt/cni/bin"
	defaultResults  = "/var/lib/cni/results"
)

// resync is when everything is looked at anew, should an event of the file system have been lost.
const resync = 30 * time.Second

// InstallConfig says what is installed where. The zero value installs the running program where runtimes look for it.
type InstallConfig struct {
	Program  string       // The file to install; empty: the running program.
	Lists    string       // The folder of lists of plugins; empty: /etc/cni/net.d.
	Programs string       // The folder of plugins; empty: /opt/cni/bin.
	Results  string       // libcni's folder of results; empty: /var/lib/cni/results. If it is not there no pod is repaired.
	Log      *slog.Logger // nil: nothing is told.
}

// Installer puts the plugin onto a node and keeps it there: its program, and its entry in the list of plugins that the
// runtime obeys, which is the first by name. The rules of pods that started before are set by Run. It does not take the
// plugin away when it ends: pods that start during its upgrade are captured, too.
type Installer struct {
	config   InstallConfig
	captured map[string]bool // files in Results whose pods are captured, or are not to be
}

// NewInstaller builds an Installer.
func NewInstaller(c InstallConfig) *Installer {
	c.Program = cmp.Or(c.Program, "/proc/self/exe")
	c.Lists = cmp.Or(c.Lists, defaultLists)
	c.Programs = cmp.Or(c.Programs, defaultPrograms)
	c.Results = cmp.Or(c.Results, defaultResults)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Installer{config: c, captured: map[string]bool{}}
}

// Run installs the plugin, and again whenever somebody else rewrites what it has written, until ctx is done. What cannot
// be done is told and tried again at the next change.
func (i *Installer) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch folders: %w", err)
	}
	defer func() { _ = watcher.Close() }()
	tick := time.NewTicker(resync)
	defer tick.Stop()
	installed, repaired := errors.New("not tried"), error(nil) // as it was told last
	for {
		err := i.install(watcher)
		if fmt.Sprint(err) != fmt.Sprint(installed) {
			installed = err
			if err != nil {
				i.config.Log.Warn("the plugin is not installed; it is tried again when something changes", "err", err)
			} else {
				i.config.Log.Info("the plugin is installed", "programs", i.config.Programs, "lists", i.config.Lists)
			}
		}
		if err == nil {
			err = i.repair(watcher)
			if err != nil && fmt.Sprint(err) != fmt.Sprint(repaired) {
				i.config.Log.Warn("pods that had started without the plugin may have no rules; it is tried again", "err", err)
			}
			repaired = err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-watcher.Events:
		case err := <-watcher.Errors:
			i.config.Log.Warn("events of the file system got lost; everything is looked at anew", "err", err)
		}
	}
}

// install installs what is missing. The folders are watched first, so that no change falls between. The program goes first:
// a list that names a plugin which is not there lets no pod start.
func (i *Installer) install(watcher *fsnotify.Watcher) error {
	c := i.config
	for _, folder := range []string{c.Lists, c.Programs} {
		if err := watcher.Add(folder); err != nil {
			return fmt.Errorf("watch %s (is it mounted?): %w", folder, err)
		}
	}
	if err := i.installProgram(); err != nil {
		return err
	}
	list, err := i.first()
	if err != nil {
		return err
	}
	return edit(list, chain)
}

// installProgram copies the program, unless it is there.
func (i *Installer) installProgram() error {
	text, same, err := i.program()
	if err != nil || same {
		return err
	}
	if err := write(i.target(), text, 0o755); err != nil {
		return fmt.Errorf("install %s: %w", i.target(), err)
	}
	return nil
}

func (i *Installer) target() string { return filepath.Join(i.config.Programs, Name) }

// program is the program, and whether it is installed.
func (i *Installer) program() (text []byte, same bool, err error) {
	if text, err = os.ReadFile(i.config.Program); err != nil {
		return nil, false, fmt.Errorf("read the program to install: %w", err)
	}
	there, err := os.ReadFile(i.target())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("read the installed program: %w", err)
	}
	return text, bytes.Equal(there, text), nil
}

// first is the list that the runtime obeys.
func (i *Installer) first() (string, error) {
	files, err := os.ReadDir(i.config.Lists) // by name
	if err != nil {
		return "", fmt.Errorf("look for lists of plugins: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(i.config.Lists, f.Name())
		switch filepath.Ext(path) {
		case ".conflist":
			return path, nil
		case ".conf", ".json":
			return "", fmt.Errorf("%s is a single plugin, behind which nothing can stand: "+
				"have your network plugin write a list (.conflist), or do without the CNI plugin", path)
		}
	}
	return "", fmt.Errorf("%s has no list of plugins yet: it waits for your network plugin", i.config.Lists)
}

// Ready returns an error unless the plugin is installed.
func (i *Installer) Ready() error {
	if _, same, err := i.program(); err != nil {
		return err
	} else if !same {
		return fmt.Errorf("%s is not there, or another one", i.target())
	}
	path, err := i.first()
	if err != nil {
		return err
	}
	list, err := readFile(path)
	if err != nil {
		return err
	}
	want, err := chain(list)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !bytes.Equal(want, list) {
		return fmt.Errorf("%s does not name the plugin", path)
	}
	return nil
}

// Uninstall takes the plugin out of all lists and then its program away. No Installer must run. Pods that run stay
// captured; those that start later and should be captured fail in their container lateen-validation.
func (i *Installer) Uninstall() error {
	lists, err := filepath.Glob(filepath.Join(i.config.Lists, "*.conflist"))
	if err != nil {
		return err
	}
	var faults []error
	for _, path := range lists {
		faults = append(faults, edit(path, unchain))
	}
	if err := errors.Join(faults...); err != nil {
		return err // a list may name the program still
	}
	if err := os.Remove(i.target()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the program: %w", err)
	}
	return nil
}
