package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source"
	"github.com/lateen-mesh/lateen/source/dir"
	"github.com/lateen-mesh/lateen/xds/server"
)

// The bounds of the API.
const (
	bodyMax    = 16 << 20
	apiTimeout = 10 * time.Second
)

// serveAPI serves the command line's API on the Unix socket, which only its owner can open. A socket that is there is
// that of a control plane that was killed: New has taken the lock beside it.
func (c *Control) serveAPI(ctx context.Context) error {
	if err := os.Remove(c.cfg.API); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open %s: %w", c.cfg.API, err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", c.cfg.API)
	if err != nil {
		return err
	}
	if err := os.Chmod(c.cfg.API, 0o600); err != nil {
		_ = l.Close()
		return err
	}
	s := &http.Server{Handler: c.mux(), ReadHeaderTimeout: apiTimeout, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (c *Control) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", c.serveReady)
	mux.HandleFunc("POST /apply", c.serveApply)
	mux.HandleFunc("POST /delete", c.serveDelete)
	mux.HandleFunc("GET /objects", c.serveObjects)
	mux.HandleFunc("GET /proxies", c.serveProxies)
	mux.HandleFunc("GET /status", c.serveStatus)
	mux.HandleFunc("POST /tokens", c.serveTokens)
	mux.HandleFunc("POST /workloads", c.serveWorkloads)
	return mux
}

func (c *Control) serveReady(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-c.read:
		_, _ = io.WriteString(w, "ready\n")
	default:
		http.Error(w, "the configuration has not been read yet; the log says what is waited for", http.StatusServiceUnavailable)
	}
}

// errReadOnly is the answer to who wants to change a configuration that is not ours to change.
var errReadOnly = errors.New("the configuration of this mesh is in Kubernetes; change it there, with `kubectl apply` or `kubectl delete`")

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v)
}

func refuse(w http.ResponseWriter, status int, err error) {
	reply(w, status, map[string]string{"error": err.Error()})
}

type resultJSON struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Action    string `json:"action"`
}

type faultJSON struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Object  string `json:"object,omitempty"`
	Path    string `json:"path,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

func faultsJSON(list []api.Fault) []faultJSON {
	out := []faultJSON{}
	for _, f := range list {
		out = append(out, faultJSON{File: f.File, Line: f.Line, Column: f.Column, Object: f.Object, Path: f.Path, Message: f.Message})
	}
	return out
}

func findingsJSON(list []source.Finding) []faultJSON {
	out := []faultJSON{}
	for _, f := range list {
		out = append(out, faultJSON{
			File: f.File, Line: f.Line, Column: f.Column, Object: f.Object, Path: f.Path, Code: f.Code, Message: f.Message,
		})
	}
	return out
}

// warnings leaves out what is merely worth knowing, which is in the log.
func warnings(list []source.Finding) []source.Finding {
	return slices.DeleteFunc(list, func(f source.Finding) bool { return f.Level == source.LevelInfo })
}

// outcome answers what became of objects.
func outcome(w http.ResponseWriter, results []dir.Result, faults []api.Fault, findings []source.Finding) {
	if len(faults) > 0 {
		reply(w, http.StatusUnprocessableEntity, map[string]any{"faults": faultsJSON(faults)})
		return
	}
	list := []resultJSON{}
	for _, r := range results {
		list = append(list, resultJSON{r.Ref.Kind, r.Ref.Namespace, r.Ref.Name, string(r.Outcome)})
	}
	reply(w, http.StatusOK, map[string]any{"results": list, "warnings": findingsJSON(warnings(findings))})
}

func body(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	p, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("read the request: %w", err))
		return nil, false
	}
	return p, true
}

func (c *Control) serveApply(w http.ResponseWriter, r *http.Request) {
	if c.folder == nil {
		refuse(w, http.StatusConflict, errReadOnly)
		return
	}
	docs, ok := body(w, r)
	if !ok {
		return
	}
	q := r.URL.Query()
	results, faults, findings := c.folder.Apply(docs, q.Get("name"), q.Get("dryRun") == "true")
	outcome(w, results, faults, findings)
}

func (c *Control) serveDelete(w http.ResponseWriter, r *http.Request) {
	if c.folder == nil {
		refuse(w, http.StatusConflict, errReadOnly)
		return
	}
	docs, ok := body(w, r)
	if !ok {
		return
	}
	dry := r.URL.Query().Get("dryRun") == "true"
	if text := strings.TrimSpace(string(docs)); strings.HasPrefix(text, "[") {
		var refs []struct{ Kind, Namespace, Name string }
		if err := json.Unmarshal(docs, &refs); err != nil {
			refuse(w, http.StatusBadRequest, fmt.Errorf("read what to delete: %w", err))
			return
		}
		var list []api.Ref
		for _, x := range refs {
			list = append(list, api.Ref{Kind: x.Kind, Namespace: x.Namespace, Name: x.Name})
		}
		results, faults, findings := c.folder.Delete(list, dry)
		outcome(w, results, faults, findings)
		return
	}
	results, faults, findings := c.folder.DeleteDocs(docs, r.URL.Query().Get("name"), dry)
	outcome(w, results, faults, findings)
}

type objectJSON struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	YAML      string `json:"yaml"`
	File      string `json:"file"`
	Line      int    `json:"line"`
}

func (c *Control) serveObjects(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	kind, namespace, name := q.Get("kind"), q.Get("namespace"), q.Get("name")
	out := []objectJSON{}
	for _, o := range c.store.List(kind, namespace, name) {
		text, err := api.Encode(o)
		if err != nil {
			refuse(w, http.StatusInternalServerError, err)
			return
		}
		out = append(out, objectJSON{o.Kind, o.Namespace, o.Name, string(text), o.File, o.Line})
	}
	if kind == "" || kind == api.KindWorkloadEntry {
		for _, m := range c.registry.list() {
			if c.isWritten(m.Ref()) {
				continue // it is in the list already, as it is in force
			}
			if (namespace == "" || namespace == m.Namespace) && (name == "" || name == m.ID) {
				out = append(out, objectJSON{api.KindWorkloadEntry, m.Namespace, m.ID, entryYAML(m), "", 0})
			}
		}
	}
	reply(w, http.StatusOK, out)
}

// entryYAML writes a workload that registered itself as the WorkloadEntry that it stands for.
func entryYAML(m *mesh.Workload) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: %s\n  namespace: %s\n", m.ID, m.Namespace)
	b.WriteString("  annotations:\n    lateen.dev/registered: by its proxy\n")
	fmt.Fprintf(&b, "spec:\n  address: %s\n  serviceAccount: %s\n", m.Addresses[0], m.ServiceAccount)
	if len(m.Labels) > 0 {
		text, _ := json.Marshal(m.Labels) // of strings: never fails
		fmt.Fprintf(&b, "  labels: %s\n", text)
	}
	if len(m.Ports) > 0 {
		text, _ := json.Marshal(m.Ports) // of numbers: never fails
		fmt.Fprintf(&b, "  ports: %s\n", text)
	}
	return b.String()
}

type proxyJSON struct {
	Name      string         `json:"name"`
	Namespace string         `json:"namespace"`
	Role      string         `json:"role"`
	Identity  string         `json:"identity"`
	Connected bool           `json:"connected"`
	Since     time.Time      `json:"since"`
	Synced    bool           `json:"synced"`
	Acked     time.Time      `json:"acked"`
	Types     map[string]int `json:"types"`
	Refused   string         `json:"refused"`
	Peer      string         `json:"peer"`
}

func (c *Control) serveProxies(w http.ResponseWriter, _ *http.Request) {
	byName := map[string]proxyJSON{}
	order := []string{}
	for _, s := range c.xds.Clients() {
		p := proxyOf(s)
		key := p.Namespace + "/" + p.Name
		old, seen := byName[key]
		if !seen {
			order = append(order, key)
		}
		if !seen || !old.Connected || p.Connected && p.Since.After(old.Since) {
			byName[key] = p
		}
	}
	out := []proxyJSON{}
	for _, k := range order {
		out = append(out, byName[k])
	}
	reply(w, http.StatusOK, out)
}

func proxyOf(s server.ClientStatus) proxyJSON {
	m := s.Client.Node.Metadata
	text := func(key string) string { v, _ := m[key].(string); return v }
	role, _, _ := strings.Cut(s.Client.Node.ID, "~")
	if role == "router" {
		role = "gateway"
	}
	p := proxyJSON{
		Name: text("NAME"), Namespace: text("NAMESPACE"), Role: role, Identity: s.Client.Identity, Connected: s.Until.IsZero(),
		Since: s.Since, Synced: s.Until.IsZero(), Types: map[string]int{}, Peer: s.Client.Peer,
	}
	for _, t := range s.Types {
		p.Synced = p.Synced && t.Synced
		p.Types[t.TypeURL[strings.LastIndexByte(t.TypeURL, '.')+1:]] = t.Names
		if t.AckedAt.After(p.Acked) {
			p.Acked = t.AckedAt
		}
		if t.NackMessage != "" {
			p.Refused = t.NackMessage
		}
	}
	return p
}

// connected lists the workloads that have a stream open.
func (c *Control) connected() map[mesh.Ref]bool {
	out := map[mesh.Ref]bool{}
	for _, s := range c.xds.Clients() {
		if s.Until.IsZero() {
			p := proxyOf(s)
			out[mesh.Ref{Kind: mesh.KindWorkload, Namespace: p.Namespace, Name: p.Name}] = true
		}
	}
	return out
}

func (c *Control) serveStatus(w http.ResponseWriter, _ *http.Request) {
	folder, stats, snap := c.store.Status(), c.cache.Stats(), c.cache.Snapshot()
	proxies := 0
	for _, s := range c.xds.Clients() {
		if s.Until.IsZero() {
			proxies++
		}
	}
	reply(w, http.StatusOK, map[string]any{
		"started": c.started, "snapshot": snap.Version, "objects": snap.Len(), "proxies": proxies, "compiled": stats.Compiled,
		"changed": stats.Changed, "faults": faultsJSON(folder.Faults), "warnings": findingsJSON(warnings(c.findings())), "restored": folder.Restored,
		"version": version(), "listen": c.addr, "trustDomain": c.authority.TrustDomain(),
	})
}

func (c *Control) serveTokens(w http.ResponseWriter, r *http.Request) {
	p, ok := body(w, r)
	if !ok {
		return
	}
	var ask struct {
		Namespace, ServiceAccount, TTL string
		// Name binds the token's owner to one workload, and Labels to its labels; Gateway lets it be a gateway.
		Name    string
		Labels  map[string]string
		Gateway bool
	}
	if err := json.Unmarshal(p, &ask); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("read the request: %w", err))
		return
	}
	var ttl time.Duration
	if ask.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(ask.TTL); err != nil {
			refuse(w, http.StatusBadRequest, fmt.Errorf("ttl: %w", err))
			return
		}
	}
	if ask.Name != "" && !nameValid(ask.Name) {
		refuse(w, http.StatusBadRequest, fmt.Errorf("name %q is no name of a workload", ask.Name))
		return
	}
	if ref := (mesh.Ref{Kind: mesh.KindWorkload, Namespace: ask.Namespace, Name: ask.Name}); !ask.Gateway && c.isWritten(ref) {
		refuse(w, http.StatusConflict, writtenError(ref))
		return
	}
	t, err := c.tokens.Issue(ask.Namespace, ask.ServiceAccount, ttl)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	if err := c.grants.allow(ask.Namespace, ask.ServiceAccount, ask.Name, ask.Gateway, ask.Labels); err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	reply(w, http.StatusOK, map[string]any{
		"token": t.Text, "expires": t.Expires, "identity": t.ID.String(), "trustDomain": c.authority.TrustDomain(),
		"roots": string(c.authority.Bundle().PEM(c.authority.TrustDomain())), "control": []string{c.addr}, "controlName": ServerName,
	})
}

// serveWorkloads is told by who runs a workload how it is: {"namespace","name","state":"healthy|unhealthy|draining|gone"}.
func (c *Control) serveWorkloads(w http.ResponseWriter, r *http.Request) {
	p, ok := body(w, r)
	if !ok {
		return
	}
	var ask struct{ Namespace, Name, State string }
	if err := json.Unmarshal(p, &ask); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("read the request: %w", err))
		return
	}
	ref := mesh.Ref{Kind: mesh.KindWorkload, Namespace: ask.Namespace, Name: ask.Name}
	var known bool
	switch ask.State {
	case "healthy":
		known = c.registry.setHealth(ref, mesh.Healthy)
	case "unhealthy":
		known = c.registry.setHealth(ref, mesh.Unhealthy)
	case "draining":
		known = c.registry.setHealth(ref, mesh.Draining)
	case "gone":
		known = c.registry.leave(ref)
	default:
		refuse(w, http.StatusBadRequest, fmt.Errorf("state %q: want healthy, unhealthy, draining or gone", ask.State))
		return
	}
	if !known {
		refuse(w, http.StatusNotFound, fmt.Errorf("no workload %s/%s has registered", ask.Namespace, ask.Name))
		return
	}
	reply(w, http.StatusOK, map[string]bool{"ok": true})
}
