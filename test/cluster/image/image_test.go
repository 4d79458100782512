package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/test/cluster/image"
)

// unpack reads an archive's files, by name.
func unpack(t *testing.T, text []byte) (map[string]string, map[string]tar.Header) {
	t.Helper()
	files, heads := map[string]string{}, map[string]tar.Header{}
	for r := tar.NewReader(bytes.NewReader(text)); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, heads
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[head.Name], heads[head.Name] = string(content), *head
	}
}

func write(t *testing.T, img image.Image) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := image.Write(&out, img); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestWrite(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("code"), 0o755); err != nil {
		t.Fatal(err)
	}
	img := image.Image{Names: []string{"lateen.test/a:1", "lateen.test/b:1"}, Files: []image.File{
		image.ParseFile(program), image.ParseFile(program + ":/usr/bin/other"),
	}}
	text := write(t, img)
	files, _ := unpack(t, text)
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal([]byte(files["manifest.json"]), &manifest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(img.Names, manifest[0].RepoTags); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	layer := files[manifest[0].Layers[0]]
	sum := sha256.Sum256([]byte(layer))
	var config struct {
		Config struct {
			Entrypoint []string
			User       string
		} `json:"config"`
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal([]byte(files[manifest[0].Config]), &config); err != nil {
		t.Fatal(err)
	}
	if config.Config.User != image.Nobody || !cmp.Equal(config.Config.Entrypoint, []string{"/program"}) {
		t.Errorf("it runs %v as %q", config.Config.Entrypoint, config.Config.User)
	}
	if diff := cmp.Diff([]string{"sha256:" + hex.EncodeToString(sum[:])}, config.RootFS.DiffIDs); diff != "" {
		t.Errorf("digest of the layer (-want +got):\n%s", diff)
	}
	content, heads := unpack(t, []byte(layer))
	want := map[string]string{"tmp/": "", "program": "code", "usr/": "", "usr/bin/": "", "usr/bin/other": "code"}
	if diff := cmp.Diff(want, content); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if heads["program"].Mode != 0o755 || heads["tmp/"].Mode != 0o1777 {
		t.Errorf("modes %o, %o", heads["program"].Mode, heads["tmp/"].Mode)
	}
	if !bytes.Equal(text, write(t, img)) {
		t.Error("the same files make another image")
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, img := range map[string]image.Image{
		"no name":  {Files: []image.File{{From: "/dev/null", To: "/a"}}},
		"no file":  {Names: []string{"a:1"}},
		"a device": {Names: []string{"a:1"}, Files: []image.File{{From: "/dev/null", To: "/a"}}},
		"missing":  {Names: []string{"a:1"}, Files: []image.File{{From: "/does/not/exist", To: "/a"}}},
	} {
		if image.Write(io.Discard, img) == nil {
			t.Errorf("%s: it is made", name)
		}
	}
}
