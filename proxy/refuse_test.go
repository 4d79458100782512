package proxy

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

// TestRefuse: what comes to an application that takes no connections any more goes to another one, whatever its method;
// where there is none, both proxies say why.
func TestRefuse(t *testing.T) {
	a := authority(t)
	gone, there := sidecar(t, a, "gone"), sidecar(t, a, "there")
	strict := func(c *plan.Chain) { c.TLS.Mode = plan.TLSStrict }
	refusing := gone.inbound(fmt.Sprintf("127.0.0.1:%d", freePort(t)), strict)
	serving := there.inbound(backend(t, echoBody).Listener.Addr().String(), strict)
	log := gone.log(plan.ListenerInbound, "%RESPONSE_CODE% %RESPONSE_FLAGS%\n")
	// The default of Istio: two retries, and none for answers.
	retry := &plan.Retry{Attempts: 2, On: plan.OnConnectFailure | plan.OnRefusedStream, AvoidPrevious: true}
	meshed := func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
		chain.HTTP.Inline = to("out", func(r *plan.Rule) { r.Retry = retry })
		c.TLS.Mode = plan.ClientTLSAuto
		for i := range e {
			e[i].MTLS = true
		}
	}
	client := sidecar(t, a, "client")
	at := client.outbound(meshed, refusing, serving)
	web := webClient(t)
	for i := range 40 {
		if res, body := fetch(t, web, request(t, "POST", "http://"+at+"/", strings.NewReader("hello"))); res.StatusCode != http.StatusOK || body != "hello" {
			t.Fatalf("request %d: %s %q %q", i, res.Status, body, res.Header.Get(reasonField))
		}
	}
	alone := sidecar(t, a, "alone")
	at = alone.outbound(meshed, refusing)
	res, _ := fetch(t, web, request(t, "GET", "http://"+at+"/", nil))
	if got := res.Header.Get(reasonField); res.StatusCode != http.StatusServiceUnavailable || got != "upstream_refused_stream" {
		t.Errorf("%s %q", res.Status, got)
	}
	gone.stop() // so that the log is written
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "503 UF\n"); lines < 2 || lines != strings.Count(string(text), "\n") {
		t.Errorf("the log of the one that refuses:\n%s", text)
	}
}
