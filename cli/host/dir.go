package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultMesh is the name of the mesh when none is given.
const DefaultMesh = "default"

// maxSocketPath is what the kernel takes for the path of a Unix socket (unix(7)), less its final zero.
const maxSocketPath = 107

// label matches what names a mesh, a workload or a namespace: an RFC 1123 label.
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Dir is the run directory of one mesh: its sockets, its configuration, its logs. Only its owner may look inside.
type Dir string

// DirOf returns the run directory of a mesh: below /run for root, else below XDG_RUNTIME_DIR or the directory for
// temporary files. It is not made; if it is there, it is ours alone.
func DirOf(mesh string) (Dir, error) {
	if !label.MatchString(mesh) {
		return "", fmt.Errorf("the mesh name %q is not a label: use lower case letters, digits and '-', at most 63", mesh)
	}
	base := os.Getenv("XDG_RUNTIME_DIR")
	switch uid := os.Geteuid(); {
	case uid == 0:
		base = "/run/lateen"
	case base != "":
		base = filepath.Join(base, "lateen")
	default:
		base = filepath.Join(os.TempDir(), fmt.Sprintf("lateen-%d", uid))
	}
	d := Dir(filepath.Join(base, mesh))
	if !filepath.IsAbs(base) {
		return "", fmt.Errorf("the run directory %s is not an absolute path: set XDG_RUNTIME_DIR to one", d)
	}
	for _, dir := range []string{base, string(d)} {
		if err := owned(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return d, nil
}

// owned checks that a directory is ours alone: whoever else could write in it could answer in the host's place, and
// be given files and secrets.
func owned(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at the run directory: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("the run directory %s must be a directory of yours with mode 0700: remove it, or set "+
			"XDG_RUNTIME_DIR to a directory of your own", dir)
	}
	return nil
}

// Socket is where the host listens for clients.
func (d Dir) Socket() string { return filepath.Join(string(d), "host.sock") }

// API is where lateend listens for those who administrate it.
func (d Dir) API() string { return filepath.Join(string(d), "api.sock") }

// Config is the folder with the mesh's configuration.
func (d Dir) Config() string { return filepath.Join(string(d), "config") }

// State is the folder that lateend keeps its state in.
func (d Dir) State() string { return filepath.Join(string(d), "state") }

// Admin is the admin socket of a workload's proxy.
func (d Dir) Admin(namespace, name string) string {
	return filepath.Join(string(d), "proxies", namespace+"."+name+".sock")
}

// Log is the log file of a process.
func (d Dir) Log(name string) string { return filepath.Join(string(d), "logs", name+".log") }

func (d Dir) lock() string { return filepath.Join(string(d), "host.lock") }
func (d Dir) pid() string  { return filepath.Join(string(d), "host.pid") }

// Make makes the directory, for its owner alone. That it was there is no fault, unless it is somebody else's. The error
// is fs.ErrNotExist if a host that ended took it away meanwhile.
func (d Dir) Make() error {
	longest := d.Admin(strings.Repeat("n", 20), strings.Repeat("n", 20))
	if len(longest) > maxSocketPath {
		return fmt.Errorf("the run directory %s is too deep for Unix sockets, whose paths have %d bytes: set "+
			"XDG_RUNTIME_DIR to a shorter path", d, maxSocketPath)
	}
	for _, dir := range []string{filepath.Dir(string(d)), string(d)} {
		err := os.MkdirAll(dir, 0o700)
		if errors.Is(err, fs.ErrExist) { // it was there, and was gone when MkdirAll looked whether it is a directory
			err = fs.ErrNotExist
		}
		if err != nil {
			return fmt.Errorf("make the run directory %s: %w", dir, err)
		}
		if err := owned(dir); err != nil {
			return err
		}
	}
	return nil
}

// makeFolders makes the folders in the directory. Only who holds the lock may: the next one sweeps them away.
func (d Dir) makeFolders() error {
	for _, dir := range []string{d.Config(), d.State(), filepath.Dir(d.Log("")), filepath.Dir(d.Admin("", ""))} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the folders of the mesh: %w", err)
		}
	}
	return nil
}

// tryLock takes the lock that a host holds for its life; nil means that somebody else has it.
func (d Dir) tryLock() (*os.File, error) {
	lock, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the mesh: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		held, herr := lock.Stat()
		there, terr := os.Stat(d.lock())
		if herr == nil && terr == nil && os.SameFile(held, there) {
			return lock, nil
		}
		err = unix.EWOULDBLOCK // A host removed it, with the rest, while we opened it.
	}
	_ = lock.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", d.lock(), err)
	}
	return nil, nil
}

// remove removes the directory, whose lock the caller holds. It goes out of sight first: whoever makes a new one
// meanwhile keeps it whole.
func (d Dir) remove() error {
	aside := fmt.Sprintf("%s%s%d", d, endedMark, time.Now().UnixNano())
	if err := os.Rename(string(d), aside); err != nil {
		return fmt.Errorf("remove the run directory: %w", err)
	}
	err := os.RemoveAll(aside)
	for try := 1; try < removeTries && errors.Is(err, syscall.ENOTEMPTY); try++ {
		err = os.RemoveAll(aside) // Somebody who had found the directory in sight has just made a lock in it.
	}
	if err != nil {
		return fmt.Errorf("remove the run directory: %w", err)
	}
	return nil
}

// removeTries bounds the tries to remove a directory. Nobody finds it any more after the first one.
const removeTries = 10

// endedMark is in the names of directories that have gone out of sight.
const endedMark = ".ended-"

// sweepEnded removes what is left of directories that were to be removed when whoever did it was killed. It tells
// whether there was anything.
func (d Dir) sweepEnded() (bool, error) {
	entries, err := os.ReadDir(filepath.Dir(string(d)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sweep the run directories: %w", err)
	}
	found := false
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), filepath.Base(string(d))+endedMark) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(filepath.Dir(string(d)), e.Name())); err != nil {
			return found, fmt.Errorf("sweep the run directories: %w", err)
		}
		found = true
	}
	return found, nil
}

// sweep removes what a host that was killed left in the directory. Nobody may run there: the caller holds the lock.
func (d Dir) sweep() error {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sweep the run directory: %w", err)
	}
	for _, e := range entries {
		if path := filepath.Join(string(d), e.Name()); path != d.lock() {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("sweep the run directory: %w", err)
			}
		}
	}
	return nil
}
