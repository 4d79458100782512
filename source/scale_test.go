package source

import (
	"fmt"
	"testing"

	"github.com/lateen-mesh/lateen/api"
)

// crowd is a set of so many Services, and for each fifth of them a VirtualService and a DestinationRule.
func crowd(tb testing.TB, services int) *Set {
	tb.Helper()
	var list []*api.Object
	for i := range services {
		text := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: n%d}\nspec: {clusterIP: 10.%d.%d.%d, selector: {app: s}, ports: [{name: http, port: 80}]}\n",
			i, i%100, 100+i>>16, i>>8&255, i&255)
		if i%5 == 0 {
			text += fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: s%d, namespace: n%d}\n"+
				"spec: {hosts: [s%d], http: [{route: [{destination: {host: s%d, subset: a}}]}]}\n", i, i%100, i, i)
			text += fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: s%d, namespace: n%d}\n"+
				"spec: {host: s%d, subsets: [{name: a, labels: {version: a}}]}\n", i, i%100, i)
		}
		r := api.Decode("", []byte(text))
		if len(r.Faults) > 0 {
			tb.Fatal(r.Faults)
		}
		list = append(list, r.Objects...)
	}
	s := New(Config{})
	s.Replace(list)
	return s
}

// BenchmarkCopy is how long an admission holds up changes of 14,000 objects.
func BenchmarkCopy(b *testing.B) {
	s := crowd(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		s.Copy(nil)
	}
}

// BenchmarkJudge judges one route among 14,000 objects.
func BenchmarkJudge(b *testing.B) {
	s := crowd(b, 10_000)
	r := api.Decode("", []byte("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x, namespace: n1}\nspec: {hosts: [s1], http: [{route: [{destination: {host: s1}}]}]}\n"))
	b.ReportAllocs()
	for b.Loop() {
		s.Copy(nil).Judge(r.Objects[0])
	}
}

// BenchmarkFindings looks at 14,000 objects as a whole.
func BenchmarkFindings(b *testing.B) {
	s := crowd(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		s.Findings()
	}
}
