package redirect

import (
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

// TestGolden compares testdata/*.txtar: a Config and annotations in (config.json, annotations.json), rules or faults
// out. UPDATE=1 rewrites the latter.
func TestGolden(t *testing.T) {
	for name, archive := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			got := txtar.File{Name: "rules"}
			rules, err := goldenRules(t, archive)
			if err != nil {
				got.Name, got.Data = "error", []byte(err.Error()+"\n")
			} else {
				got.Data = []byte(rules.String())
			}
			want := txtar.Format(archive)
			isResult := func(f txtar.File) bool { return f.Name == "rules" || f.Name == "error" }
			archive.Files = append(slices.DeleteFunc(archive.Files, isResult), got)
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(filepath.Join("testdata", name), txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), string(txtar.Format(archive))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestApplyGolden gives the rules of each golden to the kernel, which must take and list them as they are.
func TestApplyGolden(t *testing.T) {
	ns := nstest.New(t)
	for name, archive := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			rules, err := goldenRules(t, archive)
			if err != nil {
				return // A golden of faults.
			}
			if err := netns.Do(ns, func() error { return Apply(rules) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTextIsNft has the nft program, where there is one, list what we applied: it must print what we print; and load
// what we print: that must be what we applied.
func TestTextIsNft(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs the program nft: ", err)
	}
	run := func(input string, args ...string) string {
		cmd := exec.Command(nft, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("nft %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for name, archive := range goldens(t) {
		rules, err := goldenRules(t, archive)
		if err != nil {
			continue
		}
		ns := nstest.New(t)
		err = netns.Do(ns, func() error {
			if err := Apply(rules); err != nil {
				return err
			}
			if diff := cmp.Diff(rules.String(), run("", "list", "ruleset")); diff != "" {
				t.Errorf("%s (-ours +nft)\n%s", name, diff)
			}
			run("delete table inet lateen\n"+rules.String(), "-f", "-")
			if diff := cmp.Diff(rules.String(), run("", "list", "ruleset")); diff != "" {
				t.Errorf("%s, loaded by nft (-ours +nft)\n%s", name, diff)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func goldens(t *testing.T) map[string]*txtar.Archive {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	all := map[string]*txtar.Archive{}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(file)] = archive
	}
	return all
}

func goldenRules(t *testing.T, archive *txtar.Archive) (Ruleset, error) {
	t.Helper()
	var config Config
	var annotations map[string]string
	for _, file := range archive.Files {
		decoder := json.NewDecoder(strings.NewReader(string(file.Data)))
		decoder.DisallowUnknownFields()
		var err error
		switch file.Name {
		case "config.json":
			err = decoder.Decode(&config)
		case "annotations.json":
			err = decoder.Decode(&annotations)
		}
		if err != nil {
			t.Fatalf("%s: %v", file.Name, err)
		}
	}
	config, err := Annotated(config, annotations)
	if err != nil {
		return Ruleset{}, err
	}
	return Rules(config)
}

// TestValidate has all faults of a Config told at once.
func TestValidate(t *testing.T) {
	many := make([]uint16, maxEntries+1)
	for i := range many {
		many[i] = uint16(i + 1)
	}
	for _, test := range []struct {
		name   string
		config Config
		want   []string // Parts of the error, each on a line of its own.
	}{
		{"the zero value", Config{}, nil},
		{"the most entries", Config{ExcludeOutboundPorts: many[:maxEntries]}, nil},
		{"one entry more", Config{ExcludeOutboundPorts: many}, []string{"ExcludeOutboundPorts: 257 entries"}},
		{"equal ports", Config{OutboundPort: InboundPort}, []string{"OutboundPort and InboundPort are both 15006"}},
		{"port in use", Config{InboundPort: 15021}, []string{"15021, which the proxy needs"}},
		{"mark beyond its mask", Config{Proxy: Proxy{Mark: 0x1000, Mask: 0xfff}}, []string{"under the mask 0xfff"}},
		{"mask alone", Config{Proxy: Proxy{UIDs: []uint32{1}, Mask: 1}}, []string{"under the mask 0x1"}},
		{"everything wrong", Config{
			NoInbound: true, NoOutbound: true, NoDNS: true,
			IncludeInboundPorts: []uint16{0}, ExcludeOutboundPorts: []uint16{0},
			IncludeOutboundRanges: []netip.Prefix{{}},
			ExcludeOutboundRanges: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")},
			Resolvers:             []netip.Addr{{}, netip.MustParseAddr("fe80::1%eth0")},
			ExcludeInterfaces:     []string{"", "lo", "interface-names-have-15", `a"b`},
		}, []string{
			"IncludeInboundPorts: 0 is not a port", "ExcludeOutboundPorts: 0 is not a port",
			`IncludeOutboundRanges: "invalid Prefix"`, `ExcludeOutboundRanges: "::ffff:10.0.0.0/104"`,
			`Resolvers: "invalid IP"`, `Resolvers: "fe80::1%eth0"`,
			`ExcludeInterfaces: ""`, `without "lo"`, `"interface-names-have-15" is not`, `"a\"b" is not`,
			"NoInbound and IncludeInboundPorts", "NoOutbound and IncludeOutboundRanges", "NoDNS and Resolvers",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Rules(test.config)
			if len(test.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(test.want) {
				t.Errorf("%d faults, want %d:\n%v", len(lines), len(test.want), err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q among the faults:\n%v", want, err)
				}
			}
		})
	}
}
