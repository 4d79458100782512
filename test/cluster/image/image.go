// Package image makes container images of programs, without a container engine.
//
// In come files, out comes an archive that "ctr images import" and "docker load" take: one layer over nothing. The same
// files make the same bytes. The package must not know what is in the files. Write may be called concurrently.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Nobody is the user of an image that names none: it owns nothing on any machine.
const Nobody = "65532:65532"

// maxFileBytes bounds one file, because the layer is put together in memory.
const maxFileBytes = 1 << 30

// Image is what to make.
type Image struct {
	// Names are what it is to be called, with tags, such as "lateen.test/lateend:dev".
	Names []string
	// Files are copied into the root folder.
	Files []File
	// Entrypoint is the program; empty: the first file.
	Entrypoint []string
	// User is that of the processes; empty: Nobody.
	User string
}

// File is one file of an image.
type File struct {
	// From is a path on this machine, To the path in the image; the mode is kept.
	From, To string
}

// ParseFile reads FROM:TO; FROM alone goes to the root folder.
func ParseFile(text string) File {
	from, to, ok := strings.Cut(text, ":")
	if !ok {
		to = "/" + path.Base(from)
	}
	return File{From: from, To: to}
}

type config struct {
	Architecture string        `json:"architecture"`
	OS           string        `json:"os"`
	Created      time.Time     `json:"created"`
	Config       runtimeConfig `json:"config"`
	RootFS       rootFS        `json:"rootfs"`
	History      []history     `json:"history"`
}

type runtimeConfig struct {
	Entrypoint []string
	Env        []string
	User       string
	WorkingDir string
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Write writes the image's archive.
func Write(w io.Writer, img Image) error {
	if len(img.Names) == 0 || len(img.Files) == 0 {
		return errors.New("write image: it needs a name and a file")
	}
	layer, err := pack(img.Files)
	if err != nil {
		return fmt.Errorf("write image %s: %w", img.Names[0], err)
	}
	if len(img.Entrypoint) == 0 {
		img.Entrypoint = []string{img.Files[0].To}
	}
	if img.User == "" {
		img.User = Nobody
	}
	// No file is newer than the epoch, so that the same files make the same image.
	epoch := time.Unix(0, 0).UTC()
	cfg, err := json.Marshal(config{
		Architecture: runtime.GOARCH, OS: "linux", Created: epoch,
		Config:  runtimeConfig{Entrypoint: img.Entrypoint, Env: []string{"PATH=/bin:/"}, User: img.User, WorkingDir: "/"},
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{"sha256:" + digest(layer)}},
		History: []history{{Created: epoch, CreatedBy: "lateen test/cluster"}},
	})
	if err != nil {
		return fmt.Errorf("encode configuration of image %s: %w", img.Names[0], err)
	}
	cfgName := digest(cfg) + ".json"
	list, err := json.Marshal([]manifest{{Config: cfgName, RepoTags: img.Names, Layers: []string{"layer.tar"}}})
	if err != nil {
		return fmt.Errorf("encode manifest of image %s: %w", img.Names[0], err)
	}
	archive := tar.NewWriter(w)
	for _, entry := range []struct {
		name string
		text []byte
	}{{cfgName, cfg}, {"layer.tar", layer}, {"manifest.json", list}} {
		if err := add(archive, entry.name, 0o644, entry.text); err != nil {
			return fmt.Errorf("write image %s: %w", img.Names[0], err)
		}
	}
	return archive.Close()
}

// pack makes the layer: the files, the folders that they are in, and an empty /tmp.
func pack(files []File) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, ModTime: time.Unix(0, 0)}); err != nil {
		return nil, err
	}
	made := []string{"tmp"}
	for _, file := range files {
		info, err := os.Stat(file.From)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() || info.Size() > maxFileBytes {
			return nil, fmt.Errorf("%s is not a file of at most %d bytes", file.From, maxFileBytes)
		}
		name := strings.TrimPrefix(path.Clean("/"+file.To), "/")
		for _, folder := range folders(name) {
			if slices.Contains(made, folder) {
				continue
			}
			made = append(made, folder)
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
				return nil, err
			}
		}
		text, err := os.ReadFile(file.From)
		if err != nil {
			return nil, err
		}
		if err := add(w, name, int64(info.Mode().Perm()), text); err != nil {
			return nil, err
		}
	}
	return layer.Bytes(), w.Close()
}

// folders are those above a path, the outermost first.
func folders(name string) []string {
	var all []string
	for folder := path.Dir(name); folder != "."; folder = path.Dir(folder) {
		all = append(all, folder)
	}
	slices.Reverse(all)
	return all
}

func add(w *tar.Writer, name string, mode int64, text []byte) error {
	head := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text)), Mode: mode, ModTime: time.Unix(0, 0)}
	if err := w.WriteHeader(head); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
