package api

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/testing/protocmp"
	networking "istio.io/api/networking/v1alpha3"
	core "k8s.io/api/core/v1"
)

// TestBookinfo decodes every file of the example, and each object again from its own encoding.
func TestBookinfo(t *testing.T) {
	files, err := filepath.Glob("../examples/bookinfo/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := Decode(file, data)
		if len(got.Objects) == 0 || len(got.Faults)+len(got.Warnings) > 0 {
			t.Errorf("%s: %d objects, faults %v, warnings %v", file, len(got.Objects), got.Faults, got.Warnings)
		}
		for _, o := range got.Objects {
			roundTrip(t, o)
		}
	}
}

// TestEncodingKeepsEverything: what JSON writes as a text, and what is zero but no default, comes back.
func TestEncodingKeepsEverything(t *testing.T) {
	for name, text := range map[string]string{
		"64 bits": `{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: a}, spec: {host: a, trafficPolicy: {
			loadBalancer: {consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 4096}}}}}}`,
		"REGISTRY_ONLY": `{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {
			mesh: "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			got := Decode("a.yaml", []byte(strings.ReplaceAll(text, "\t", " ")))
			if len(got.Objects) != 1 || len(got.Faults) > 0 {
				t.Fatalf("%d objects, %v", len(got.Objects), got.Faults)
			}
			roundTrip(t, got.Objects[0])
		})
	}
}

func roundTrip(t *testing.T, o *Object) {
	t.Helper()
	text, err := Encode(o)
	if err != nil {
		t.Fatal(err)
	}
	again := Decode("again.yaml", text)
	if len(again.Faults) > 0 || len(again.Objects) != 1 {
		t.Fatalf("decode what was encoded: %v\n%s", again.Faults, text)
	}
	if diff := cmp.Diff(o.Spec, again.Objects[0].Spec, protocmp.Transform()); diff != "" {
		t.Errorf("%s changed (-before +after):\n%s", o.Ref, diff)
	}
	second, err := Encode(again.Objects[0])
	if err != nil || string(second) != string(text) {
		t.Errorf("%s: the second encoding differs (%v):\n%s\nfirst:\n%s", o.Ref, err, second, text)
	}
}

// spare is a valid spec of each Istio kind.
var spare = map[string]string{
	KindVirtualService:      "{hosts: [a], http: [{timeout: 3m, route: [{destination: {host: a}}]}]}",
	KindDestinationRule:     "{host: a, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1h30m}}}}",
	KindGateway:             "{servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}",
	KindServiceEntry:        "{hosts: [a.b], ports: [{number: 80, name: http}]}",
	KindWorkloadEntry:       "{address: 10.0.0.1}",
	KindWorkloadGroup:       "{template: {serviceAccount: a}}",
	KindPeerAuthentication:  "{mtls: {mode: STRICT}}",
	KindAuthorizationPolicy: "{rules: [{}]}",
	KindTelemetry:           "{accessLogging: [{disabled: true}]}",
	KindWasmPlugin:          "{url: 'oci://a/b:1', pluginConfig: {list: [1, a, {b: [true]}]}}",
	KindTrafficExtension:    "{lua: {inlineCode: a()}}",
	KindEnvoyFilter:         "{configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {a: [1, b]}}}]}",
	KindSidecar:             "{egress: [{hosts: ['./*', 'shop/*.a.b']}]}",
	KindGatewayClass:        "{controllerName: lateen.dev/gateway-controller}",
	KindListenedGateway:     "{gatewayClassName: lateen, listeners: [{name: http, port: 80, protocol: HTTP}]}",
	KindHTTPRoute:           "{rules: [{backendRefs: [{name: web, port: 80}]}]}",
	KindGRPCRoute:           "{rules: [{matches: [{method: {service: a.B}}]}]}",
	KindReferenceGrant:      "{from: [{group: '', kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}",
	KindService:             "{ports: [{port: 80, targetPort: web}], clusterIP: None}",
}

// TestServedVersions reads every kind in every version in which Istio serves it.
func TestServedVersions(t *testing.T) {
	read := 0
	for name, k := range kinds() {
		for _, version := range k.versions {
			apiVersion := k.group + "/" + version
			if k.group == "" {
				apiVersion = version
			}
			kind, _, _ := strings.Cut(name, ".")
			text := "apiVersion: " + apiVersion + "\nkind: " + kind + "\nmetadata: {name: istio, namespace: istio-system}\n"
			if k.cluster {
				text = "apiVersion: " + apiVersion + "\nkind: " + kind + "\nmetadata: {name: a}\n"
			}
			if spec := spare[name]; spec != "" {
				text += "spec: " + spec + "\n"
			}
			r := Decode("x.yaml", []byte(text))
			if len(r.Faults) > 0 || len(r.Objects) != 1 {
				t.Errorf("%s %s: %v", apiVersion, name, r.Faults)
				continue
			}
			read++
			roundTrip(t, r.Objects[0])
		}
	}
	if read != 45 {
		t.Errorf("read %d kinds and versions, want 45", read)
	}
}

func TestDurationsAreGos(t *testing.T) {
	r := Decode("x.yaml", []byte("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: "+spare[KindVirtualService]))
	got := r.Objects[0].Spec.(*networking.VirtualService).Http[0].Timeout.AsDuration()
	if got != 3*time.Minute {
		t.Errorf("timeout: 3m is %s", got)
	}
}

func TestPlaces(t *testing.T) {
	text := "# note\n---\napiVersion: networking.istio.io/v1 # 3\nkind: VirtualService\nmetadata:\n  name: a\nspec:\n  hosts: [a]\n" +
		"  http:\n  - name: one\n    route: [{destination: {host: a}}]\n  - name: two # 12\n    timeout: 1s\n    route: [{destination: {host: a}}]\n"
	o := Decode("x.yaml", []byte(text)).Objects[0]
	for _, row := range []struct {
		want int
		path []any
	}{
		{3, nil},
		{7, []any{"spec"}},
		{10, []any{"spec", "http", 0}},
		{12, []any{"spec", "http", 1}},
		{13, []any{"spec", "http", 1, "timeout"}},
		{12, []any{"spec", "http", 1, "retries", "attempts"}},
	} {
		if got := o.LineOf(row.path...); got != row.want {
			t.Errorf("line of %v is %d, want %d", row.path, got, row.want)
		}
	}
	if o.Has("spec", "http", 0, "timeout") || !o.Has("spec", "http", 1, "timeout") {
		t.Error("Has does not tell what is written")
	}
	if o.Start != len("# note\n---\n") || o.End != len(text) {
		t.Errorf("the document is at %d to %d", o.Start, o.End)
	}
}

func TestJSONAndLists(t *testing.T) {
	text := "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"List\",\n\t\"items\": [\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\n\t]\n}"
	r := Decode("x.json", []byte(text))
	if len(r.Faults) > 0 || len(r.Objects) != 1 || !r.Objects[0].InList || r.Objects[0].Line != 5 {
		t.Fatalf("%v %+v", r.Faults, r.Objects)
	}
}

func TestAliasesAndMerges(t *testing.T) {
	text := "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: &l {app: a}}\nspec:\n  selector: {<<: *l, version: v1}\n  ports: [{port: 80}]\n"
	r := Decode("x.yaml", []byte(text))
	if len(r.Faults) > 0 {
		t.Fatal(r.Faults)
	}
	got := r.Objects[0].Spec.(*core.Service).Spec.Selector
	if diff := cmp.Diff(map[string]string{"app": "a", "version": "v1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestBounds(t *testing.T) {
	if r := Decode("x.yaml", make([]byte, MaxFileBytes+1)); len(r.Faults) != 1 {
		t.Errorf("a file too large: %v", r.Faults)
	}
	many := strings.Repeat("---\na: b\n", 1000)
	if r := Decode("x.yaml", []byte(many)); len(r.Faults) != maxFaults {
		t.Errorf("%d faults are told, want %d", len(r.Faults), maxFaults)
	}
}

func FuzzDecode(f *testing.F) {
	archive, err := txtar.ParseFile(faultsFile)
	if err != nil {
		f.Fatal(err)
	}
	for i := 0; i < len(archive.Files); i += 2 {
		f.Add(archive.Files[i].Data)
	}
	for kind, spec := range spare {
		f.Add([]byte("apiVersion: networking.istio.io/v1\nkind: " + kind + "\nmetadata: {name: a}\nspec: " + spec))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := Decode("x.yaml", data)
		if len(r.Faults) > maxFaults || len(r.Warnings) > maxFaults {
			t.Errorf("%d faults, %d warnings", len(r.Faults), len(r.Warnings))
		}
		for _, o := range r.Objects {
			if o.Start < 0 || o.Start > o.End || o.End > len(data) || o.Name == "" {
				t.Errorf("%s is at %d to %d of %d", o.Ref, o.Start, o.End, len(data))
			}
			if _, err := Encode(o); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestDecodeStored: an object without a file is judged like one with a file, and its faults have no place.
func TestDecodeStored(t *testing.T) {
	good := `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"r","namespace":"n","uid":"u",` +
		`"generation":3,"managedFields":[{"manager":"kubectl"}]},"spec":{"host":"a"},"status":{"conditions":[]}}`
	r := DecodeStored([]byte(good))
	if len(r.Faults)+len(r.Warnings) > 0 || len(r.Objects) != 1 || r.Objects[0].Ref != (Ref{KindDestinationRule, "n", "r"}) || r.Objects[0].LineOf("spec", "host") != 0 {
		t.Errorf("objects %v, faults %v, warnings %v", r.Objects, r.Faults, r.Warnings)
	}
	for _, bad := range []string{strings.Replace(good, `"host"`, `"hots"`, 1), `{"kind`} {
		r := DecodeStored([]byte(bad))
		if len(r.Objects) > 0 || len(r.Faults) == 0 {
			t.Fatalf("objects %v, faults %v", r.Objects, r.Faults)
		}
		if f := r.Faults[0]; f.File != "" || f.Line != 0 || f.Column != 0 {
			t.Errorf("the fault has a place: %v", f)
		}
	}
}
