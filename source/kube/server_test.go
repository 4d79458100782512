package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"

	"github.com/lateen-mesh/lateen/api"
)

// apiServer is the in-process twin of an API server: it keeps objects as JSON, lists them, and tells of changes as a
// real one does: streams of initial events, bookmarks, and 410 Gone for who asks from too long ago.
type apiServer struct {
	*httptest.Server
	t testing.TB

	mu       sync.Mutex
	version  int
	objects  map[string]map[string]object // by resource "group/plural", then "namespace/name"
	history  []change
	oldest   int // the version from which history is remembered
	streams  map[chan change]string
	held     map[string]chan struct{} // resources that are not answered until the channel is closed
	trusts   bool                     // ClusterTrustBundles are served
	noStream bool                     // initial events are not offered, as by older servers
	requests []string
	reviews  func(token string, audiences []string) map[string]any
	refusals map[string]string      // why objects of a name are not created
	probes   int                    // how many were not
	broken   func(path string) bool // which requests fail; nil: none. It is called under mu
}

type object = map[string]any

type change struct {
	version  int
	resource string
	kind     string
	object   object
}

// installed are the resources that a server knows without a definition, by kind.
var installed = map[string]string{
	"Service": "/services", "Pod": "/pods", "Node": "/nodes", "Namespace": "/namespaces", "ConfigMap": "/configmaps", "Secret": "/secrets",
	"EndpointSlice": "discovery.k8s.io/endpointslices", "CustomResourceDefinition": "apiextensions.k8s.io/customresourcedefinitions",
	"Lease": "coordination.k8s.io/leases", "MutatingWebhookConfiguration": "admissionregistration.k8s.io/mutatingwebhookconfigurations",
	"ClusterTrustBundle":             "certificates.k8s.io/clustertrustbundles",
	"ValidatingWebhookConfiguration": "admissionregistration.k8s.io/validatingwebhookconfigurations",
	"Deployment":                     "apps/deployments", "ServiceAccount": "/serviceaccounts",
	"HorizontalPodAutoscaler": "autoscaling/horizontalpodautoscalers", "PodDisruptionBudget": "policy/poddisruptionbudgets",
}

func newServer(t testing.TB) *apiServer {
	s := &apiServer{t: t, version: 1, objects: map[string]map[string]object{}, streams: map[chan change]string{}, held: map[string]chan struct{}{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.cut()
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) cluster() *Cluster { return &Cluster{&rest.Config{Host: s.URL}} }

// define installs the definitions of all kinds that are watched.
func (s *apiServer) define() {
	for _, c := range customs {
		s.defineOne(c)
	}
}

// kindOf is an object's kind as package api names it.
func kindOf(o object) string {
	kind, _ := o["kind"].(string)
	if version, _ := o["apiVersion"].(string); kind == api.KindGateway && strings.HasPrefix(version, api.GroupGateway) {
		return api.KindListenedGateway
	}
	return kind
}

func resourceOf(kind string) string {
	if r, ok := installed[kind]; ok {
		return r
	}
	for _, c := range customs {
		if c.kind == kind {
			return c.group + "/" + c.resource
		}
	}
	return ""
}

// apply puts the objects of YAML documents; kinds that are not served are left out.
func (s *apiServer) apply(text string) {
	s.t.Helper()
	for doc := range strings.SplitSeq("\n"+text, "\n---") {
		var v any
		if err := yaml.Unmarshal([]byte(doc), &v); err != nil {
			s.t.Fatal(err)
		}
		if o, _ := plain(v).(object); o != nil && resourceOf(kindOf(o)) != "" {
			s.put(o)
		}
	}
}

// plain is a YAML value as JSON has it.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = plain(e)
		}
	case map[any]any:
		out := object{}
		for k, e := range v {
			out[fmt.Sprint(k)] = plain(e)
		}
		return out
	case []any:
		for i, e := range v {
			v[i] = plain(e)
		}
	case time.Time:
		return v.Format(time.RFC3339)
	}
	return v
}

func metadataOf(o object) object {
	m, _ := o["metadata"].(object)
	return m
}

func nameOf(o object) string {
	m := metadataOf(o)
	namespace, _ := m["namespace"].(string)
	return namespace + "/" + m["name"].(string)
}

// clustered are the kinds without namespace.
var clustered = []string{"Node", "GatewayClass", "Namespace", "CustomResourceDefinition", "MutatingWebhookConfiguration", "ClusterTrustBundle", "ValidatingWebhookConfiguration"}

func (s *apiServer) put(o object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store(o)
}

// store keeps an object with a new version. The caller holds mu.
func (s *apiServer) store(o object) {
	m := metadataOf(o)
	kind := kindOf(o)
	if _, ok := m["namespace"]; !ok && !slices.Contains(clustered, kind) {
		m["namespace"] = "default"
	}
	r := resourceOf(kind)
	s.version++
	m["resourceVersion"] = strconv.Itoa(s.version)
	old, existed := s.objects[r][nameOf(o)]
	generation := 1.0
	if existed {
		before, _ := metadataOf(old)["generation"].(float64)
		generation = before
		if fmt.Sprint(old["spec"]) != fmt.Sprint(o["spec"]) {
			generation++
		}
	}
	m["generation"] = generation
	if s.objects[r] == nil {
		s.objects[r] = map[string]object{}
	}
	what := "ADDED"
	if existed {
		what = "MODIFIED"
	}
	o = clone(o)
	s.objects[r][nameOf(o)] = o
	s.tell(change{s.version, r, what, o})
}

// clone copies an object as JSON has it.
func clone(o object) object {
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err) // it came from YAML
	}
	var out object
	_ = json.Unmarshal(raw, &out)
	return out
}

func (s *apiServer) remove(kind, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(resourceOf(kind), name)
}

// drop removes an object. The caller holds mu.
func (s *apiServer) drop(r, name string) {
	o := clone(s.objects[r][name])
	delete(s.objects[r], name)
	s.version++
	metadataOf(o)["resourceVersion"] = strconv.Itoa(s.version)
	s.tell(change{s.version, r, "DELETED", o})
}

func (s *apiServer) tell(c change) {
	s.history = append(s.history, c)
	for ch, r := range s.streams {
		if r == c.resource {
			ch <- c
		}
	}
}

// get returns an object.
func (s *apiServer) get(kind, name string) object {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.objects[resourceOf(kind)][name]; o != nil {
		return clone(o)
	}
	return nil
}

// cut ends all watches.
func (s *apiServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.streams {
		close(ch)
	}
	clear(s.streams)
}

// forget drops the history, so that watches from before cannot be resumed.
func (s *apiServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history, s.oldest = nil, s.version
}

// hold leaves a resource unanswered until the returned function is called.
func (s *apiServer) hold(resource string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := make(chan struct{})
	s.held[resource] = ch
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(ch)
		delete(s.held, resource)
	})
}

func (s *apiServer) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func refusal(w http.ResponseWriter, status int, reason string) {
	answer(w, status, object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": status, "message": reason})
}

func (s *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	group, version := "", parts[1]
	rest := parts[2:]
	s.mu.Lock()
	broken := s.broken != nil && s.broken(r.URL.Path)
	s.mu.Unlock()
	if broken {
		refusal(w, http.StatusInternalServerError, "InternalError")
		return
	}
	if parts[0] == "apis" {
		group, version, rest = parts[1], parts[2], parts[3:]
	}
	if len(rest) == 0 {
		s.serveVersion(w, r, group, version)
		return
	}
	namespace := ""
	if rest[0] == "namespaces" && len(rest) > 2 {
		namespace, rest = rest[1], rest[2:]
	}
	resource, name := group+"/"+rest[0], ""
	if len(rest) > 1 {
		name = rest[1]
	}
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	held := s.held[resource]
	s.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return
		}
	}
	if !s.serves(resource) {
		refusal(w, http.StatusNotFound, "NotFound")
		return
	}
	switch {
	case r.Method == http.MethodGet && name == "" && r.URL.Query().Get("watch") != "":
		s.serveWatch(w, r, resource, namespace)
	case r.Method == http.MethodGet && name == "":
		s.serveList(w, r, resource, namespace)
	default:
		s.serveOne(w, r, resource, namespace, name)
	}
}

// serves reports whether a resource is there: what is not installed needs a definition.
func (s *apiServer) serves(resource string) bool {
	if slices.Contains(slices.Collect(maps.Values(installed)), resource) || strings.HasSuffix(resource, "reviews") {
		return true
	}
	group, plural, _ := strings.Cut(resource, "/")
	return s.get("CustomResourceDefinition", "/"+plural+"."+group) != nil
}

func (s *apiServer) serveVersion(w http.ResponseWriter, r *http.Request, group, version string) {
	if strings.HasPrefix(r.Header.Get("Accept"), "application/vnd.kubernetes.protobuf") { // which we do not write
		refusal(w, http.StatusNotAcceptable, "NotAcceptable")
		return
	}
	list := []object{}
	if group == "certificates.k8s.io" && version == "v1" && s.trusts {
		list = append(list, object{"name": "clustertrustbundles"})
	}
	for _, c := range customs {
		if c.group == group && s.servesIn(c, version) {
			list = append(list, object{"name": c.resource})
		}
	}
	if len(list) == 0 {
		refusal(w, http.StatusNotFound, "NotFound")
		return
	}
	answer(w, http.StatusOK, object{"kind": "APIResourceList", "resources": list})
}

// fits reports whether an object is among those that a request selects.
func fits(r *http.Request, namespace string, o object) bool {
	m := metadataOf(o)
	if namespace != "" && m["namespace"] != namespace {
		return false
	}
	if name, ok := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name="); ok && name != m["name"] {
		return false
	}
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		return false
	}
	own := labels.Set{}
	all, _ := m["labels"].(object)
	for k, v := range all {
		own[k], _ = v.(string)
	}
	return selector.Matches(own)
}

// form is an object as a request wants it: whole, or its metadata only.
func form(r *http.Request, o object) object {
	if strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadata") {
		return object{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": o["metadata"]}
	}
	return o
}

func (s *apiServer) selected(r *http.Request, resource, namespace string) []object {
	out := []object{}
	for _, name := range slices.Sorted(maps.Keys(s.objects[resource])) {
		if o := s.objects[resource][name]; fits(r, namespace, o) {
			out = append(out, form(r, o))
		}
	}
	return out
}

func (s *apiServer) serveList(w http.ResponseWriter, r *http.Request, resource, namespace string) {
	s.mu.Lock()
	items, version := s.selected(r, resource, namespace), s.version
	s.mu.Unlock()
	m := object{"resourceVersion": strconv.Itoa(version)}
	start, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	if limit, _ := strconv.Atoi(r.URL.Query().Get("limit")); limit > 0 && start+limit < len(items) {
		items = items[:start+limit]
		m["continue"] = strconv.Itoa(start + limit)
	}
	items = items[start:]
	apiVersion, kind := "v1", "List"
	if len(items) > 0 {
		apiVersion, kind = items[0]["apiVersion"].(string), items[0]["kind"].(string)+"List"
	} else if strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadata") {
		apiVersion, kind = "meta.k8s.io/v1", "PartialObjectMetadataList"
	} else {
		for k, v := range installed {
			if v == resource {
				kind = k + "List"
			}
		}
		if group, _, _ := strings.Cut(resource, "/"); group != "" {
			apiVersion = group + "/v1"
		}
	}
	answer(w, http.StatusOK, object{"apiVersion": apiVersion, "kind": kind, "metadata": m, "items": items})
}

func (s *apiServer) serveWatch(w http.ResponseWriter, r *http.Request, resource, namespace string) {
	q := r.URL.Query()
	initial := q.Get("sendInitialEvents") == "true"
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	s.mu.Lock()
	if initial && s.noStream {
		s.mu.Unlock()
		refusal(w, http.StatusUnprocessableEntity, "Invalid")
		return
	}
	var events []object
	if initial {
		for _, o := range s.selected(r, resource, namespace) {
			events = append(events, object{"type": "ADDED", "object": o})
		}
		mark := object{"resourceVersion": strconv.Itoa(s.version), "annotations": object{"k8s.io/initial-events-end": "true"}}
		events = append(events, object{"type": "BOOKMARK", "object": form(r, s.empty(resource, mark))})
	} else if from < s.oldest {
		s.mu.Unlock()
		refusal(w, http.StatusGone, "Expired")
		return
	}
	ch := make(chan change, 4096)
	if !initial {
		for _, c := range s.history {
			if c.version > from && c.resource == resource {
				ch <- c
			}
		}
	}
	s.streams[ch] = resource
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.streams, ch)
	}()
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	flush := func() { _ = http.NewResponseController(w).Flush() }
	for _, e := range events {
		_ = out.Encode(e)
	}
	flush()
	for {
		select {
		case c, ok := <-ch:
			if !ok {
				return
			}
			if fits(r, namespace, c.object) {
				_ = out.Encode(object{"type": c.kind, "object": form(r, c.object)})
				flush()
			}
		case <-r.Context().Done():
			return
		}
	}
}

// empty is an object of a resource that has nothing but metadata.
func (s *apiServer) empty(resource string, m object) object {
	group, _, _ := strings.Cut(resource, "/")
	for _, c := range customs {
		if c.group+"/"+c.resource == resource {
			return object{"apiVersion": group + "/" + c.versions[0], "kind": c.kind, "metadata": m}
		}
	}
	for k, v := range installed {
		if v == resource {
			return object{"apiVersion": strings.TrimPrefix(group+"/v1", "/"), "kind": k, "metadata": m}
		}
	}
	return nil
}

// serveOne reads or writes one object.
func (s *apiServer) serveOne(w http.ResponseWriter, r *http.Request, resource, namespace, name string) {
	var body object
	if raw, _ := io.ReadAll(r.Body); len(raw) > 0 {
		if err := json.Unmarshal(raw, &body); err != nil {
			refusal(w, http.StatusUnsupportedMediaType, "UnsupportedMediaType")
			return
		}
	}
	if strings.HasSuffix(resource, "tokenreviews") {
		spec, _ := body["spec"].(object)
		token, _ := spec["token"].(string)
		var audiences []string
		list, _ := spec["audiences"].([]any)
		for _, a := range list {
			audiences = append(audiences, a.(string))
		}
		body["status"] = s.reviews(token, audiences)
		answer(w, http.StatusCreated, body)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" && body != nil {
		name = metadataOf(body)["name"].(string)
	}
	old := s.objects[resource][namespace+"/"+name]
	if why := s.refusals[name]; why != "" && r.Method == http.MethodPost && r.URL.Query().Get("dryRun") == "All" {
		s.probes++
		answer(w, http.StatusUnprocessableEntity, object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422, "message": why})
		return
	}
	switch {
	case old == nil && r.Header.Get("Content-Type") == "application/apply-patch+yaml":
		s.store(body)
		answer(w, http.StatusCreated, s.objects[resource][namespace+"/"+name])
		return
	case old == nil && r.Method != http.MethodPost:
		refusal(w, http.StatusNotFound, "NotFound")
		return
	case r.Method == http.MethodPost && old != nil:
		refusal(w, http.StatusConflict, "AlreadyExists")
		return
	case r.Method == http.MethodGet:
		answer(w, http.StatusOK, old)
		return
	case r.Method == http.MethodDelete:
		s.drop(resource, namespace+"/"+name)
		answer(w, http.StatusOK, old)
		return
	}
	if v, _ := metadataOf(body)["resourceVersion"].(string); v != "" && v != metadataOf(old)["resourceVersion"] {
		refusal(w, http.StatusConflict, "Conflict")
		return
	}
	next := body
	if r.Method == http.MethodPatch {
		next = clone(old)
		merge(next, body)
	} else {
		next["kind"] = s.empty(resource, nil)["kind"]
		next["apiVersion"] = s.empty(resource, nil)["apiVersion"]
		metadataOf(next)["namespace"] = namespace
	}
	s.store(next)
	answer(w, http.StatusOK, s.objects[resource][namespace+"/"+name])
}

// merge is a JSON merge patch (RFC 7396).
func merge(into, patch object) {
	for k, v := range patch {
		inner, isObject := v.(object)
		old, wasObject := into[k].(object)
		switch {
		case v == nil:
			delete(into, k)
		case isObject && wasObject:
			merge(old, inner)
		default:
			into[k] = v
		}
	}
}
