package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/test/cluster/cgroup"
)

// fromMachine are the folders of programs that nodes use, and see read-only, at the same path.
var fromMachine = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives"}

// pluginFolders is where distributions put the CNI plugins; a node has links to them at /opt/cni/bin.
var pluginFolders = []string{"/usr/lib/cni", "/usr/libexec/cni"}

// settings are kernel parameters that the kubelet sets for the whole machine, with what it wants: it finds files that say
// so instead, and the machine's own stay as they are.
var settings = map[string]string{
	"/proc/sys/vm/overcommit_memory":      "1",
	"/proc/sys/vm/panic_on_oom":           "0",
	"/proc/sys/kernel/panic":              "10",
	"/proc/sys/kernel/panic_on_oops":      "1",
	"/proc/sys/kernel/keys/root_maxkeys":  "1000000",
	"/proc/sys/kernel/keys/root_maxbytes": "25000000",
}

// mountRoot makes the machine's folder the root of this mount namespace and puts into it what a machine has.
func mountRoot(cfg Config) error {
	// Nothing that is mounted from here on is seen outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount(cfg.Root, cfg.Root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount root of %s: %w", cfg.Name, err)
	}
	m := mounter{root: cfg.Root}
	for _, path := range fromMachine {
		m.share(path)
	}
	m.mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	m.mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	m.groups(cfg.Group)
	m.mount("/dev", "/dev", "", unix.MS_BIND|unix.MS_REC, "")
	m.mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	m.mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	m.mount(cfg.Programs, programFolder, "", unix.MS_BIND, "")
	m.mount(cfg.Logs, logFolder, "", unix.MS_BIND, "")
	m.mount(filepath.Join(cfg.Logs, cfg.Name+"-pods"), "/var/log/pods", "", unix.MS_BIND, "")
	m.folder("/tmp", 0o1777)
	m.folder("/root", 0o700)
	m.folder(kubeFolder+"/manifests", 0o755)
	m.link("/run", "/var/run")
	m.plugins()
	m.settings()
	if m.err != nil {
		return fmt.Errorf("mount root of %s: %w", cfg.Name, m.err)
	}
	if err := os.Chdir(cfg.Root); err != nil {
		return fmt.Errorf("enter root of %s: %w", cfg.Name, err)
	}
	// The old root comes to lie over the new one, and goes (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root to that of %s: %w", cfg.Name, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("enter root of %s: %w", cfg.Name, err)
	}
	// Pods may ask to see what is mounted later.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

// mounter does nothing more once something has failed.
type mounter struct {
	root string
	err  error
}

func (m *mounter) folder(path string, mode fs.FileMode) {
	if m.err == nil {
		m.err = os.MkdirAll(filepath.Join(m.root, path), mode)
	}
	if m.err == nil && mode&0o1000 != 0 {
		m.err = os.Chmod(filepath.Join(m.root, path), 0o777|fs.ModeSticky)
	}
}

func (m *mounter) link(to, path string) {
	if m.err != nil {
		return
	}
	m.folder(filepath.Dir(path), 0o755)
	if err := os.Symlink(to, filepath.Join(m.root, path)); err != nil && !errors.Is(err, fs.ErrExist) {
		m.err = err
	}
}

func (m *mounter) mount(from, path, kind string, flags uintptr, data string) {
	m.folder(path, 0o755)
	if m.err != nil {
		return
	}
	if kind == "" {
		if m.err = os.MkdirAll(from, 0o755); m.err != nil {
			return
		}
	}
	if err := unix.Mount(from, filepath.Join(m.root, path), kind, flags, data); err != nil {
		m.err = fmt.Errorf("mount %s on %s: %w", from, path, err)
	}
}

// share shows the machine's folder read-only, or makes the same link.
func (m *mounter) share(path string) {
	info, err := os.Lstat(path)
	if m.err != nil || errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		m.err = err
		return
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(path)
		if err != nil {
			m.err = err
			return
		}
		m.link(to, path)
		return
	}
	m.mount(path, path, "", unix.MS_BIND|unix.MS_REC, "")
	if m.err != nil {
		return
	}
	if err := unix.Mount("", filepath.Join(m.root, path), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		m.err = fmt.Errorf("make %s read-only: %w", path, err)
	}
}

// groups shows the machine's own group in place of each hierarchy's root.
func (m *mounter) groups(group string) {
	if m.err != nil {
		return
	}
	all, err := cgroup.Hierarchies()
	if err != nil {
		m.err = err
		return
	}
	if !all[0].IsRoot() {
		// v1: folders in a file system that holds nothing else, and links for hierarchies that go by several names.
		m.mount("tmpfs", cgroup.MountPoint, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755")
		entries, err := os.ReadDir(cgroup.MountPoint)
		if err != nil {
			m.err = err
			return
		}
		for _, entry := range entries {
			if entry.Type()&fs.ModeSymlink != 0 {
				m.share(filepath.Join(cgroup.MountPoint, entry.Name()))
			}
		}
	}
	for _, h := range all {
		m.mount(filepath.Join(h.Path, group), h.Path, "", unix.MS_BIND, "")
	}
}

func (m *mounter) plugins() {
	for _, folder := range pluginFolders {
		entries, err := os.ReadDir(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil && m.err == nil {
			m.err = err
		}
		for _, entry := range entries {
			m.link(filepath.Join(folder, entry.Name()), filepath.Join("/opt/cni/bin", entry.Name()))
		}
	}
}

func (m *mounter) settings() {
	for path, value := range settings {
		if m.err != nil {
			return
		}
		file := filepath.Join(m.root, "run/settings", filepath.Base(path))
		m.folder("/run/settings", 0o755)
		if m.err == nil {
			m.err = os.WriteFile(file, []byte(value+"\n"), 0o644)
		}
		if m.err != nil {
			return
		}
		if err := unix.Mount(file, filepath.Join(m.root, path), "", unix.MS_BIND, ""); err != nil {
			m.err = fmt.Errorf("cover %s: %w", path, err)
		}
	}
}
