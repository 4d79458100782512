package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

// patience is how long what has to happen may take on a busy machine.
const patience = 30 * time.Second

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// until waits for something that happens by itself.
func until(t *testing.T, what string, happened func() error) {
	t.Helper()
	tick, late := time.NewTicker(5*time.Millisecond), time.NewTimer(patience)
	defer tick.Stop()
	defer late.Stop()
	for {
		err := happened()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// running runs an Installer until stop, or the end of the test.
func running(t *testing.T, config InstallConfig) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- NewInstaller(config).Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return stop
}

// list is what a network plugin writes.
func list(version int) string {
	return fmt.Sprintf(`{"name": "net", "version": %d, "plugins": [{"type": "network"}]}`, version)
}

// TestInstaller: the plugin comes, stays whatever others do, also when the installer ends, and goes when asked.
func TestInstaller(t *testing.T) {
	folder := t.TempDir()
	config := InstallConfig{Program: filepath.Join(folder, "program"), Lists: t.TempDir(), Programs: t.TempDir(), Results: filepath.Join(folder, "none")}
	put(t, config.Program, "#!program 1")
	installer := NewInstaller(config)
	path, program := filepath.Join(config.Lists, "10-net.conflist"), filepath.Join(config.Programs, Name)
	stop := running(t, config)

	until(t, "the program is installed", func() error { _, same, err := installer.program(); return errors.Join(err, notYet(same)) })
	if err := installer.Ready(); err == nil || !strings.Contains(err.Error(), "has no list of plugins yet") {
		t.Errorf("without a network plugin: %v", err)
	}
	if info, err := os.Stat(program); err != nil || info.Mode() != 0o755 {
		t.Errorf("the program: %v %v", info, err)
	}
	put(t, path, list(1)) // written in place
	until(t, "the first list", installer.Ready)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the list: %v %v", info, err)
	}
	if err := write(path, []byte(list(2)), 0o644); err != nil { // put in its place
		t.Fatal(err)
	}
	until(t, "another list in its place", installer.Ready)
	if !strings.Contains(content(t, path), `"version": 2`) {
		t.Errorf("the list: %s", content(t, path))
	}
	earlier := filepath.Join(config.Lists, "05-net.conflist")
	put(t, earlier, list(3))
	until(t, "a list before it", installer.Ready)
	if !strings.Contains(content(t, earlier), Name) {
		t.Errorf("the list before: %s", content(t, earlier))
	}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	until(t, "the program is back", installer.Ready)

	stop()
	if err := installer.Ready(); err != nil {
		t.Errorf("after its end: %v", err)
	}
	put(t, config.Program, "#!program 2")
	if err := installer.Ready(); err == nil {
		t.Error("another program is ready")
	}
	stop = running(t, config)
	until(t, "an upgrade", installer.Ready)
	stop()

	if err := installer.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if content(t, path) != list(2) || content(t, earlier) != list(3) {
		t.Errorf("something is left: %s %s", content(t, path), content(t, earlier))
	}
	if _, err := os.Stat(program); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the program: %v", err)
	}
	if err := installer.Uninstall(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(config.Lists, ".*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func notYet(done bool) error {
	if done {
		return nil
	}
	return errors.New("not yet")
}

// TestInstallerSingle: what stands before all lists and is none is told, not passed over: the runtime obeys it.
func TestInstallerSingle(t *testing.T) {
	config := InstallConfig{Program: os.Args[0], Lists: t.TempDir(), Programs: t.TempDir()}
	put(t, filepath.Join(config.Lists, "00-multus.conf"), `{"type": "multus"}`)
	put(t, filepath.Join(config.Lists, "10-net.conflist"), list(1))
	if _, err := NewInstaller(config).first(); err == nil || !strings.Contains(err.Error(), "00-multus.conf is a single plugin") {
		t.Error(err)
	}
}

// TestInstallerRace: a network plugin writes its list again and again while the installer works. What it has written
// last is there in the end, with ours.
func TestInstallerRace(t *testing.T) {
	const versions = 300
	folder := t.TempDir()
	config := InstallConfig{Program: filepath.Join(folder, "program"), Lists: t.TempDir(), Programs: t.TempDir(), Results: filepath.Join(folder, "none")}
	put(t, config.Program, "#!program")
	path := filepath.Join(config.Lists, "10-net.conflist")
	running(t, config)
	for version := range versions {
		if err := write(path, []byte(list(version+1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the end", NewInstaller(config).Ready)
	want, err := chain([]byte(list(versions)))
	if err != nil || content(t, path) != string(want) {
		t.Errorf("%s, want %s", content(t, path), want)
	}
}

// TestEditGivesWay: what somebody writes between our reading and our writing is not lost, whichever way it is written.
func TestEditGivesWay(t *testing.T) {
	for name, other := range map[string]func(t *testing.T, path string) (finish func()){
		"put in its place": func(t *testing.T, path string) func() {
			if err := write(path, []byte(list(2)), 0o644); err != nil {
				t.Error(err)
			}
			return func() {}
		},
		"written in place": func(t *testing.T, path string) func() {
			put(t, path, list(2))
			return func() {}
		},
		"half written in place": func(t *testing.T, path string) func() {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if _, err := f.WriteString(list(2)); err != nil {
					t.Error(err)
				}
				_ = f.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "10-net.conflist")
			put(t, path, list(1))
			var finish func()
			err := edit(path, func(text []byte) ([]byte, error) {
				if finish == nil {
					finish = other(t, path)
				}
				return chain(text)
			})
			finish()
			if err != nil { // it was half a list; the event of the other half has it edited again
				if name != "half written in place" {
					t.Error(err)
				}
				if err := edit(path, chain); err != nil {
					t.Error(err)
				}
			}
			want, _ := chain([]byte(list(2)))
			if content(t, path) != string(want) {
				t.Errorf("%s, want %s", content(t, path), want)
			}
		})
	}
}

// TestEditEnds: where others never stop writing.
func TestEditEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "10-net.conflist")
	put(t, path, list(0))
	version := 0
	err := edit(path, func(text []byte) ([]byte, error) {
		version++
		put(t, path, list(version))
		return chain(text)
	})
	if !errors.Is(err, errBusy) || content(t, path) != list(version) {
		t.Errorf("%v, %s", err, content(t, path))
	}
	put(t, path, strings.Repeat(" ", fileMax+1))
	if err := edit(path, chain); err == nil || errors.Is(err, errBusy) {
		t.Errorf("a file that is too large: %v", err)
	}
}

// TestRepair: a pod that has started before the plugin was there gets its rules from the installer, by what libcni has
// kept; a pod that does not want them gets none.
func TestRepair(t *testing.T) {
	before, later, older, plain := pod(t), pod(t), pod(t), pod(t)
	n := newNode(t, before)
	config, err := Read(capture)
	if err != nil {
		t.Fatal(err)
	}
	start := func(id string, ns *os.File, annotations map[string]string) {
		t.Helper()
		n.attachment.ContainerID, n.attachment.NetNS = id, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
		n.attachment.CapabilityArgs = map[string]any{annotationsCapability: annotations}
		if _, err := n.runtime.AddNetworkList(t.Context(), n.networks(), &n.attachment); err != nil {
			t.Fatal(err)
		}
	}
	wants := map[string]string{redirect.CaptureAnnotation: capture}
	without := n.networks() // a runtime that has read the list before the plugin stood in it
	start("before", before, wants)
	start("plain", plain, map[string]string{"a": "b"})
	put(t, filepath.Join(n.config.Results, "net-half-eth0"), `{"kind":`)
	put(t, filepath.Join(n.config.Results, "net-gone-eth0"), `{"kind":"cniCacheV1","netns":"/proc/self/fd/99999",`+
		`"capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"lateen.dev/capture":"{}"}}}`)
	put(t, filepath.Join(n.config.Results, "net-older-eth0"), fmt.Sprintf(`{"kind":"cniCacheV1","capabilityArgs":{%q:{%q:%q}},`+
		`"result":{"interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/proc/self/fd/%d"}]}}`,
		annotationsCapability, redirect.CaptureAnnotation, capture, older.Fd()))
	running(t, n.config)
	captured := func(ns *os.File) func() error {
		return func() error { return netns.Do(ns, func() error { return check(config) }) }
	}
	until(t, "the pod that has started before", captured(before))
	until(t, "the pod of an older libcni", captured(older))
	until(t, "the list", NewInstaller(n.config).Ready)

	n.attachment.ContainerID, n.attachment.NetNS = "later", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), later.Fd())
	n.attachment.CapabilityArgs = map[string]any{annotationsCapability: wants}
	if _, err := n.runtime.AddNetworkList(t.Context(), without, &n.attachment); err != nil {
		t.Fatal(err)
	}
	until(t, "the pod whose runtime had the old list", captured(later))
	if captured(plain)() == nil {
		t.Error("a pod without the annotation is captured")
	}
}

// TestRepairTells what is not as it should be.
func TestRepairTells(t *testing.T) {
	for text, want := range map[string]string{
		`{"kind":"cniCacheV1","netns":"/no/such/folder/x","capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"lateen.dev/capture":"{}"}}}`: "is /no/such/folder mounted?",
		`{"kind":"cniCacheV1","netns":"/dev/null","capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"lateen.dev/capture":"{\"x\":1}"}}}`:  "unknown field",
		`{"kind":"cniCacheV1","netns":"/dev/null","capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"lateen.dev/capture":"{}"}}}`:         "enter a network namespace",
		`{"kind":"cniCacheV1","capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"lateen.dev/capture":"{}"}}}`:                             "",
		`{"kind":"another","netns":"/dev/null","capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"lateen.dev/capture":"{}"}}}`:            "",
	} {
		config := InstallConfig{Results: t.TempDir()}
		put(t, filepath.Join(config.Results, "net-c1-eth0"), text)
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			t.Fatal(err)
		}
		err = NewInstaller(config).repair(watcher)
		_ = watcher.Close()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// FuzzResult: nothing in libcni's folder makes the installer fall over.
func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"kind":"cniCacheV1","netns":"/nowhere/x","capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"lateen.dev/capture":"{}"}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		nstest.Need(t) // which keeps the machine's own networks out of reach
		path := filepath.Join(t.TempDir(), "net-c1-eth0")
		put(t, path, string(text))
		_, _ = NewInstaller(InstallConfig{}).repairPod(path)
	})
}
