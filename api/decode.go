package api

import (
	"bytes"
	"cmp"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	proxying "istio.io/api/networking/v1beta1"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// kind is how an accepted kind is read.
type kind struct {
	group    string
	versions []string
	cluster  bool // it has no namespace
	// content makes the value to read into: a proto.Message takes the object's spec, any other the whole object.
	content  func() any
	validate func(*check)
}

var (
	networkVersions   = []string{"v1", "v1beta1", "v1alpha3"}
	securityVersions  = []string{"v1", "v1beta1"}
	telemetryVersions = []string{"v1", "v1alpha1"}
	gatewayVersions   = []string{"v1", "v1beta1"}
	filterVersions    = []string{"v1alpha3"}
	configVersions    = []string{"v1beta1"}
	extensionVersions = []string{"v1alpha1"}
	coreVersions      = []string{"v1"}
)

func kinds() map[string]kind {
	const network, secure, observe, extend = "networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io"
	return map[string]kind{
		KindService:        {"", coreVersions, false, func() any { return &core.Service{} }, validateService},
		KindSecret:         {"", coreVersions, false, func() any { return &core.Secret{} }, validateSecret},
		KindConfigMap:      {"", coreVersions, false, func() any { return &core.ConfigMap{} }, validateConfig},
		KindNamespace:      {"", coreVersions, true, func() any { return &core.Namespace{} }, nil},
		KindServiceAccount: {"", coreVersions, false, func() any { return &core.ServiceAccount{} }, nil},

		KindVirtualService:  {network, networkVersions, false, func() any { return &networking.VirtualService{} }, validateRoute},
		KindDestinationRule: {network, networkVersions, false, func() any { return &networking.DestinationRule{} }, validateTraffic},
		KindGateway:         {network, networkVersions, false, func() any { return &networking.Gateway{} }, validateGateway},
		KindServiceEntry:    {network, networkVersions, false, func() any { return &networking.ServiceEntry{} }, validateEntry},
		KindWorkloadEntry:   {network, networkVersions, false, func() any { return &networking.WorkloadEntry{} }, validateWorkload},
		KindWorkloadGroup:   {network, networkVersions, false, func() any { return &networking.WorkloadGroup{} }, validateGroup},
		KindSidecar:         {network, networkVersions, false, func() any { return &networking.Sidecar{} }, validateSidecar},
		KindEnvoyFilter:     {network, filterVersions, false, func() any { return &networking.EnvoyFilter{} }, validateFilter},
		KindProxyConfig:     {network, configVersions, false, func() any { return &proxying.ProxyConfig{} }, validateProxyConfig},

		KindPeerAuthentication:  {secure, securityVersions, false, func() any { return &security.PeerAuthentication{} }, validateAuthn},
		KindAuthorizationPolicy: {secure, securityVersions, false, func() any { return &security.AuthorizationPolicy{} }, validateAuthz},
		KindTelemetry:           {observe, telemetryVersions, false, func() any { return &telemetry.Telemetry{} }, validateTelemetry},
		KindWasmPlugin:          {extend, extensionVersions, false, func() any { return &extensions.WasmPlugin{} }, validatePlugin},
		KindTrafficExtension:    {extend, extensionVersions, false, func() any { return &extensions.TrafficExtension{} }, validateExtension},

		KindGatewayClass:    {GroupGateway, gatewayVersions, true, func() any { return &gateway.GatewayClass{} }, validateGatewayClass},
		KindListenedGateway: {GroupGateway, gatewayVersions, false, func() any { return &gateway.Gateway{} }, validateListeners},
		KindHTTPRoute:       {GroupGateway, gatewayVersions, false, func() any { return &gateway.HTTPRoute{} }, validateHTTPRoute},
		KindGRPCRoute:       {GroupGateway, coreVersions, false, func() any { return &gateway.GRPCRoute{} }, validateGRPCRoute},
		KindReferenceGrant:  {GroupGateway, gatewayVersions, false, func() any { return &gateway.ReferenceGrant{} }, nil},
	}
}

// later are kinds of Istio's and the Gateway API's that this version does not read.
var later = []string{"TLSRoute", "TCPRoute", "UDPRoute", "BackendTLSPolicy", "ListenerSet"}

// named is the name of an accepted kind, as Ref has it.
func named(apiVersion, written string) string {
	if group, _, _ := strings.Cut(apiVersion, "/"); group == GroupGateway && written == KindGateway {
		return KindListenedGateway
	}
	return written
}

// decoder is a reader and what it has found.
type decoder struct {
	reader
	kinds   map[string]kind
	doc     Document
	objects []*Object
}

// Decode reads all documents of a file. It tells every fault that it can find,
// at most 100; an object with a fault is not among the result's.
func Decode(file string, data []byte) Result {
	d := &decoder{reader: reader{file: file}, kinds: kinds()}
	if len(data) > MaxFileBytes {
		d.fault(place{}, "", "the file has %d bytes, more than the %d allowed; split it", len(data), MaxFileBytes)
		return Result{Faults: d.faults}
	}
	if path.Ext(file) == ".json" {
		data = bytes.ReplaceAll(data, []byte("\t"), []byte(" ")) // JSON may be indented by tabs, YAML may not
	}
	d.data = data
	for _, doc := range Documents(data) {
		if len(d.objects) >= maxObjects || len(d.faults) >= maxFaults {
			d.fault(place{doc.Line, 1}, "", "the file has more than the %d objects allowed; split it", maxObjects)
			break
		}
		d.document(doc, data[doc.Start:doc.End])
	}
	d.twins()
	byLine := func(a, b Fault) int { return cmp.Or(a.Line-b.Line, a.Column-b.Column) }
	slices.SortStableFunc(d.faults, byLine)
	slices.SortStableFunc(d.warnings, byLine)
	return Result{d.objects, d.faults, d.warnings}
}

// DecodeStored reads one object that has no file, as an API server returns it: in JSON. It is judged like any other, but
// lines and columns are 0.
func DecodeStored(data []byte) Result {
	d := &decoder{reader: reader{placeless: true, data: data}, kinds: kinds()}
	if len(data) > MaxFileBytes {
		d.fault(place{}, "", "has %d bytes, more than the %d allowed", len(data), MaxFileBytes)
		return Result{Faults: d.faults}
	}
	d.document(Document{End: len(data)}, data)
	for i := range d.faults {
		d.faults[i].Line, d.faults[i].Column = 0, 0 // a syntax error has a line of its own
	}
	return Result{d.objects, d.faults, d.warnings}
}

// twins tells of objects that are in the file twice.
func (d *decoder) twins() {
	first := map[Ref]*Object{}
	for _, o := range d.objects {
		if before := first[o.Ref]; before != nil {
			d.object = o.Ref.String()
			d.fault(place{o.Line, 1}, "", "is in this file twice, first on line %d; remove one", before.Line)
			continue
		}
		first[o.Ref] = o
	}
}

var syntaxLine = regexp.MustCompile(`^line (\d+): `)

func (d *decoder) document(doc Document, text []byte) {
	d.doc, d.object, d.prefix, d.fixed, d.places = doc, "", "", nil, nil
	d.offset = place{line: doc.Line - 1}
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil {
		message := strings.TrimPrefix(err.Error(), "yaml: ")
		at := place{doc.Line, 1}
		if m := syntaxLine.FindStringSubmatch(message); m != nil {
			n, _ := strconv.Atoi(m[1])
			at.line, message = doc.Line-1+max(n, 1), message[len(m[0]):]
		}
		d.fault(at, "", "this is not YAML: %s; look at the indentation and the quotes around this line", message)
		return
	}
	if len(root.Content) == 0 || isNull(root.Content[0]) {
		return
	}
	n := root.Content[0]
	if !shallow(n, 0) {
		d.fault(d.at(n), "", "is nested more than %d deep", maxDepth)
		return
	}
	d.top(n, false)
}

// top reads an object, or a List of them.
func (d *decoder) top(n *yaml.Node, inList bool) {
	d.object, d.places = "", map[string]place{}
	if n.Kind != yaml.MappingNode {
		d.fault(d.at(n), "", "must be an object with apiVersion, kind and metadata, is %s", describe(n))
		return
	}
	fields := map[string]field{}
	var order []field
	for _, f := range d.mapping(n, "") {
		fields[f.name] = f
		order = append(order, f)
		d.markField(f.name, f)
	}
	apiVersion, kindName := d.header(fields, "apiVersion"), d.header(fields, "kind")
	for _, name := range []string{"apiVersion", "kind"} {
		if _, ok := fields[name]; !ok {
			d.fault(d.at(n), "", "%s is missing; every object begins with apiVersion and kind", name)
			return
		}
	}
	if apiVersion == "" || kindName == "" {
		return
	}
	if kindName == "List" && apiVersion == "v1" {
		d.items(fields, inList)
		return
	}
	kindName = named(apiVersion, kindName)
	k, ok := d.kinds[kindName]
	if !ok || !d.served(k, apiVersion, kindName, fields) {
		if !ok {
			d.noKind(apiVersion, kindName, fields["kind"])
		}
		return
	}
	o := &Object{
		Ref: Ref{Kind: kindName}, APIVersion: apiVersion, File: d.file, Line: d.at(n).line,
		Start: d.doc.Start, End: d.doc.End, InList: inList, places: d.places,
	}
	before := len(d.faults)
	d.content(o, k, n, order)
	if len(d.faults) == before && k.validate != nil {
		k.validate(&check{o, &d.reader})
	}
	if len(d.faults) == before {
		d.objects = append(d.objects, o)
	}
}

func (d *decoder) header(fields map[string]field, name string) string {
	f, ok := fields[name]
	if !ok {
		return ""
	}
	s, _ := d.text(f.value, name)
	return s
}

func (d *decoder) items(fields map[string]field, inList bool) {
	f, ok := fields["items"]
	if !ok {
		return
	}
	if inList {
		d.fault(d.at(f.key), "items", "a List cannot hold a List; write its items into the outer one")
		return
	}
	for _, item := range d.list(f.value, "items") {
		if len(d.objects) >= maxObjects || len(d.faults) >= maxFaults {
			return
		}
		d.top(item, true)
	}
}

func (d *decoder) noKind(apiVersion, name string, f field) {
	known := make([]string, 0, len(d.kinds))
	for k := range d.kinds {
		known = append(known, k)
	}
	slices.Sort(known)
	switch near := nearest(name, known); {
	case name == KindRequestAuthentication:
		d.fault(d.at(f.value), "kind", "%s is not supported yet, and a policy that is not enforced must not look as if it were; do without it", name)
	case slices.Contains(later, name):
		d.fault(d.at(f.value), "kind", "%s is not supported yet; do without it", name)
	case near != "":
		d.fault(d.at(f.value), "kind", "there is no kind %s; did you mean %s?", name, near)
	default:
		d.fault(d.at(f.value), "kind", "%s of %s is not a kind that a mesh reads; here are %s", name, apiVersion, strings.Join(known, ", "))
	}
}

// served reports whether a kind has the version that the object names.
func (d *decoder) served(k kind, apiVersion, name string, fields map[string]field) bool {
	var names []string
	for _, v := range k.versions {
		names = append(names, strings.TrimPrefix(k.group+"/"+v, "/"))
	}
	if slices.Contains(names, apiVersion) {
		return true
	}
	d.fault(d.at(fields["apiVersion"].value), "apiVersion", "%s is not a version of %s; write %s", apiVersion, name, strings.Join(names, " or "))
	return false
}

// content reads metadata and spec into o.
func (d *decoder) content(o *Object, k kind, n *yaml.Node, fields []field) {
	d.object = peek(o.Kind, k.cluster, n).String()
	m := meta.ObjectMeta{}
	for _, f := range fields {
		if f.name == "metadata" {
			d.plain(f.value, "metadata", reflect.ValueOf(&m).Elem())
		}
	}
	o.Name, o.Namespace, o.Labels, o.Annotations = m.Name, m.Namespace, m.Labels, m.Annotations
	if !m.CreationTimestamp.IsZero() {
		o.Created = m.CreationTimestamp.UnixNano()
	}
	if o.Namespace == "" && !k.cluster {
		o.Namespace = DefaultNamespace
	}
	d.object = o.Ref.String()
	d.metadata(o, k, n)
	value := k.content()
	if message, ok := value.(proto.Message); ok {
		for _, f := range fields {
			switch f.name {
			case "spec":
				d.message(f.value, "spec", message.ProtoReflect())
			case "apiVersion", "kind", "metadata", "status":
			default:
				d.unknown(f, "", []string{"metadata", "spec", "status"})
			}
		}
		if !o.Has("spec") && len(required[string(message.ProtoReflect().Descriptor().Name())]) > 0 {
			d.fault(d.at(n), "", "spec is missing; without it the object says nothing")
		}
		o.Spec = message
		return
	}
	v := reflect.ValueOf(value).Elem()
	rest := slices.DeleteFunc(slices.Clone(fields), func(f field) bool { return f.name == "metadata" })
	targets := map[string]reflect.Value{}
	jsonFields(v, targets)
	v.FieldByName("ObjectMeta").Set(reflect.ValueOf(m))
	for _, f := range rest {
		target, ok := targets[f.name]
		if !ok {
			known := []string{}
			for name := range targets {
				known = append(known, name)
			}
			d.unknown(f, "", known)
			continue
		}
		if !unread[o.Kind+"."+f.name] && f.name != "status" {
			d.plain(f.value, f.name, target)
		}
	}
	if k.group == GroupGateway && !o.Has("spec") {
		d.fault(d.at(n), "", "spec is missing; without it the object says nothing")
	}
	o.Spec = value
}

// peek tells an object's name before its metadata is judged.
func peek(kind string, cluster bool, n *yaml.Node) Ref {
	r := Ref{Kind: kind}
	if !cluster {
		r.Namespace = DefaultNamespace
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != "metadata" || n.Content[i+1].Kind != yaml.MappingNode {
			continue
		}
		inner := n.Content[i+1].Content
		for j := 0; j+1 < len(inner); j += 2 {
			switch {
			case inner[j+1].Kind != yaml.ScalarNode:
			case inner[j].Value == "name":
				r.Name = inner[j+1].Value
			case inner[j].Value == "namespace":
				r.Namespace = inner[j+1].Value
			}
		}
	}
	return r
}

var (
	// dnsLabel and dnsName are RFC 1123's, in lower case as Kubernetes wants names.
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dnsName  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

const maxName = 253

func (d *decoder) metadata(o *Object, k kind, n *yaml.Node) {
	pl := func(path string) place {
		if p, ok := o.places[path]; ok {
			return p
		}
		return d.holder("metadata", n)
	}
	switch {
	case o.Name == "":
		d.fault(d.holder("metadata", n), "metadata", "name is missing; every object needs one")
	case len(o.Name) > maxName || !dnsName.MatchString(o.Name):
		d.fault(pl("metadata.name"), "metadata.name", "%q is not a name; use lower-case letters, digits, - and .", o.Name)
	}
	switch {
	case k.cluster && o.Namespace != "":
		d.fault(pl("metadata.namespace"), "metadata.namespace", "a %s is in no namespace; remove the field", o.Kind)
		o.Namespace = ""
	case !k.cluster && !dnsLabel.MatchString(o.Namespace):
		d.fault(pl("metadata.namespace"), "metadata.namespace", "%q is not a namespace; use up to 63 lower-case letters, digits and -", o.Namespace)
	}
	c := &check{o, &d.reader}
	c.labels("metadata.labels", o.Labels)
}
