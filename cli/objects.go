package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
)

// maxInput bounds what is applied at once.
const maxInput = 16 << 20

// kinds are the names under which a kind may be asked for, in lower case, besides its own and its plural.
//
// The names stand here again, beside those of package api, because every workload's first process is this program: it
// would hold all of Istio's and Kubernetes' types in memory for their names. A test compares.
func kinds() map[string][]string {
	return map[string][]string{
		"Service": {"svc"}, "Secret": nil, "ConfigMap": {"cm"}, "Namespace": {"ns"}, "ServiceAccount": {"sa"},
		"VirtualService": {"vs"}, "DestinationRule": {"dr"}, "Gateway": {"gw"}, "ServiceEntry": {"se"},
		"WorkloadEntry": {"we"}, "WorkloadGroup": {"wg"}, "PeerAuthentication": {"pa"},
		"AuthorizationPolicy": {"ap", "authz"}, "Telemetry": nil,
		"GatewayClass": {"gc"}, "Gateway.gateway.networking.k8s.io": {"gtw", "gateways.gateway.networking.k8s.io"}, "HTTPRoute": nil,
		"GRPCRoute": nil, "ReferenceGrant": {"refgrant"},
	}
}

// kindOf finds the kind that is meant.
func kindOf(text string) (string, error) {
	whole := strings.ToLower(text)
	short, _, _ := strings.Cut(whole, ".") // As in gateways.networking.istio.io.
	for _, word := range []string{whole, short} {
		for kind, more := range kinds() {
			name := strings.ToLower(kind)
			names := append([]string{name, name + "s", name + "es", strings.TrimSuffix(name, "y") + "ies"}, more...)
			if slices.Contains(names, word) {
				return kind, nil
			}
		}
	}
	all := slices.Collect(maps.Keys(kinds()))
	slices.Sort(all)
	return "", usage(fmt.Errorf("the kind %q is unknown; choose %s", text, strings.Join(all, ", ")))
}

// piece is one file among those that are sent together.
type piece struct {
	name  string
	first int // Its first line in what is sent.
}

// bundle is files put together, so that they are applied whole; faults are told by the file they are in.
type bundle struct {
	text   []byte
	pieces []piece
}

func (b *bundle) add(name string, text []byte) error {
	if len(b.text)+len(text) > maxInput {
		return fmt.Errorf("read %s: more than %d MiB at once; apply fewer files", name, maxInput>>20)
	}
	if len(b.text) > 0 {
		b.text = append(b.text, "---\n"...)
	}
	b.pieces = append(b.pieces, piece{name, bytes.Count(b.text, []byte("\n")) + 1})
	b.text = append(b.text, text...)
	if len(text) > 0 && text[len(text)-1] != '\n' {
		b.text = append(b.text, '\n')
	}
	return nil
}

// place translates a line of the bundle.
func (b *bundle) place(line int) (string, int) {
	for _, p := range slices.Backward(b.pieces) {
		if line >= p.first {
			return p.name, line - p.first + 1
		}
	}
	return "", line
}

// read reads files, folders of them, or standard input.
func (a *app) read(paths []string) (*bundle, error) {
	b := &bundle{}
	for _, path := range paths {
		if path == "-" {
			text, err := io.ReadAll(io.LimitReader(a.in, maxInput+1))
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}
			if err := b.add("-", text); err != nil {
				return nil, err
			}
			continue
		}
		files, err := yamlFiles(path)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("no .yaml, .yml or .json file is in %s", path)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				return nil, fmt.Errorf("read the objects: %w", err)
			}
			if err := b.add(f, text); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// yamlFiles returns a file, or those of a folder and its folders that hold objects, in their order.
func yamlFiles(path string) (out []string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("find the objects: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if ext := filepath.Ext(p); err == nil && !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, ext) {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for objects: %w", err)
	}
	return out, nil
}

// finding is a fault or a warning of the control plane.
type finding struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Object  string `json:"object"`
	Path    string `json:"path"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// outcome is what became of objects.
type outcome struct {
	Results []struct {
		Kind      string `json:"kind"`
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
		Action    string `json:"action"`
	} `json:"results"`
	Faults   []finding `json:"faults"`
	Warnings []finding `json:"warnings"`
}

// inputName is what the control plane calls a bundle in its faults.
const inputName = "input"

// send sends objects to be applied or deleted.
func (a *app) send(ctx context.Context, path string, dry bool, body []byte, b *bundle) (outcome, error) {
	query := url.Values{"name": {inputName}}
	if dry {
		query.Set("dryRun", "true")
	}
	var out outcome
	err := host.Call(ctx, a.dir.API(), http.MethodPost, path+"?"+query.Encode(), body, &out)
	if refused, ok := errors.AsType[*host.CallError](err); ok && refused.Status == http.StatusUnprocessableEntity {
		if json.Unmarshal(refused.Body, &out) == nil && len(out.Faults) > 0 {
			return out, refusal(out.Faults, b)
		}
	}
	return out, a.absent(err)
}

// change sends objects, and tells what became of them.
func (a *app) change(ctx context.Context, path string, dry bool, body []byte, b *bundle) error {
	out, err := a.send(ctx, path, dry, body, b)
	if err != nil {
		return err
	}
	for _, r := range out.Results {
		suffix := ""
		if dry {
			suffix = " (dry run)"
		}
		say(a.out, "%s %s/%s %s%s\n", r.Kind, r.Namespace, r.Name, r.Action, suffix)
	}
	a.warn(out.Warnings, b)
	return nil
}

// warn tells what the control plane finds odd.
func (a *app) warn(list []finding, b *bundle) {
	style := show.NewStyle(a.err)
	for _, w := range list {
		say(a.err, "%s %s\n", style.Warn.Render("Warning:"), w.text(b))
	}
}

// text is "file:line:column: object: path: message", with the file that the user named.
func (f finding) text(b *bundle) string {
	if b != nil && f.File == inputName {
		f.File, f.Line = b.place(f.Line)
	}
	place := f.File
	if f.Line > 0 {
		place = fmt.Sprintf("%s:%d", f.File, f.Line)
		if f.Column > 0 {
			place += fmt.Sprintf(":%d", f.Column)
		}
	}
	if f.Code != "" {
		f.Message += " [" + f.Code + "]"
	}
	parts := slices.DeleteFunc([]string{place, f.Object, f.Path, f.Message}, func(p string) bool { return p == "" })
	return strings.Join(parts, ": ")
}

func refusal(faults []finding, b *bundle) error {
	lines := []string{"nothing was changed, because of:"}
	for _, f := range faults {
		lines = append(lines, "  "+f.text(b))
	}
	return errors.New(strings.Join(lines, "\n"))
}

// apply is `lateen apply`.
func (a *app) apply() *cobra.Command {
	var files []string
	var dry bool
	cmd := &cobra.Command{
		Use: "apply -f FILE|FOLDER|-", Short: "Apply objects: all of them, or none", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usage(errors.New("nothing to apply is named; use -f"))
			}
			b, err := a.read(files)
			if err != nil {
				return err
			}
			return a.change(cmd.Context(), "/apply", dry, b.text, b)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would happen")
	return cmd
}

// delete is `lateen delete`.
func (a *app) delete() *cobra.Command {
	var files []string
	var dry bool
	var namespace string
	cmd := &cobra.Command{
		Use: "delete -f FILE|FOLDER|- | KIND NAME...", Short: "Delete objects",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(files) > 0 && len(args) == 0:
				b, err := a.read(files)
				if err != nil {
					return err
				}
				return a.change(cmd.Context(), "/delete", dry, b.text, b)
			case len(files) > 0 || len(args) < 2:
				return usage(errors.New("name what to delete: either -f FILE, or KIND NAME"))
			}
			kind, err := kindOf(args[0])
			if err != nil {
				return err
			}
			var refs []map[string]string
			for _, name := range args[1:] {
				refs = append(refs, map[string]string{"kind": kind, "namespace": namespace, "name": name})
			}
			body, err := json.Marshal(refs)
			if err != nil {
				return fmt.Errorf("write the request: %w", err)
			}
			return a.change(cmd.Context(), "/delete", dry, body, nil)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would happen")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "their namespace")
	return cmd
}

// object is one of the mesh's.
type object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	YAML      string `json:"yaml"`
	File      string `json:"file"`
	Line      int    `json:"line"`
}

// get is `lateen get`.
func (a *app) get() *cobra.Command {
	var namespace, output string
	var everywhere bool
	cmd := &cobra.Command{
		Use: "get [KIND [NAME]]", Short: "Show objects of the mesh", Args: checked(cobra.MaximumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := format(output, "", "wide", "yaml", "json"); err != nil {
				return err
			}
			query := url.Values{}
			if !everywhere {
				query.Set("namespace", namespace)
			}
			if len(args) > 0 {
				kind, err := kindOf(args[0])
				if err != nil {
					return err
				}
				query.Set("kind", kind)
			}
			if len(args) > 1 {
				query.Set("name", args[1])
			}
			var list []object
			if err := host.Call(cmd.Context(), a.dir.API(), http.MethodGet, "/objects?"+query.Encode(), nil, &list); err != nil {
				return a.absent(err)
			}
			if len(list) == 0 && len(args) > 1 {
				return fmt.Errorf("no %s %q is in namespace %q; `lateen get -A` lists all", query.Get("kind"), args[1], namespace)
			}
			slices.SortFunc(list, func(x, y object) int {
				return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
			})
			return a.show(list, output, everywhere)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "their namespace")
	cmd.Flags().BoolVarP(&everywhere, "all-namespaces", "A", false, "of all namespaces")
	cmd.Flags().StringVarP(&output, "output", "o", "", "wide, yaml or json")
	return cmd
}

// show prints objects.
func (a *app) show(list []object, output string, everywhere bool) error {
	switch output {
	case "yaml":
		for i, o := range list {
			if i > 0 {
				say(a.out, "---\n")
			}
			say(a.out, "%s\n", strings.TrimRight(o.YAML, "\n"))
		}
		return nil
	case "json":
		items := []json.RawMessage{}
		for _, o := range list {
			text, err := yaml.YAMLToJSON([]byte(o.YAML))
			if err != nil {
				return fmt.Errorf("read %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
			}
			items = append(items, text)
		}
		return show.JSON(a.out, items)
	}
	if len(list) == 0 {
		say(a.err, "no objects\n")
		return nil
	}
	say(a.out, "%s", objectTable(show.NewStyle(a.out), list, output == "wide", everywhere))
	return nil
}

func objectTable(s show.Style, list []object, wide, everywhere bool) string {
	heads := []string{"KIND", "NAME"}
	if everywhere {
		heads = []string{"KIND", "NAMESPACE", "NAME"}
	}
	if wide {
		heads = append(heads, "FROM")
	}
	var rows [][]string
	for _, o := range list {
		row := []string{o.Kind, o.Name}
		if everywhere {
			row = []string{o.Kind, o.Namespace, o.Name}
		}
		if wide {
			from := "registered by its proxy"
			if o.File != "" {
				from = fmt.Sprintf("%s:%d", o.File, o.Line)
			}
			row = append(row, from)
		}
		rows = append(rows, row)
	}
	return s.Table(heads, rows)
}

// token is `lateen token`.
func (a *app) token() *cobra.Command {
	var ask host.TokenRequest
	var output string
	parent := &cobra.Command{Use: "token", Short: "Make join tokens for workloads"}
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token with which one proxy may join, once", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := format(output, "text", "json"); err != nil {
				return err
			}
			if output == "json" {
				var all json.RawMessage
				if err := host.Call(cmd.Context(), a.dir.API(), http.MethodPost, "/tokens", ask, &all); err != nil {
					return a.absent(err)
				}
				return show.JSON(a.out, all)
			}
			var t host.Token
			if err := host.Call(cmd.Context(), a.dir.API(), http.MethodPost, "/tokens", ask, &t); err != nil {
				return a.absent(err)
			}
			say(a.out, "%s\n", t.Token)
			return nil
		},
	}
	cmd.Flags().StringVarP(&ask.Namespace, "namespace", "n", "default", "namespace that it is for")
	cmd.Flags().StringVar(&ask.ServiceAccount, "service-account", "default", "service account that it is for")
	cmd.Flags().StringVar(&ask.TTL, "ttl", "10m", "how long it is good for")
	cmd.Flags().StringVar(&ask.Name, "name", "", "the one workload that it is for; empty: any of the service account")
	cmd.Flags().BoolVar(&ask.Gateway, "gateway", false, "let its owner be a gateway, which gets the namespace's TLS keys")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json, which also has what a proxy must know to join")
	parent.AddCommand(cmd)
	return parent
}
