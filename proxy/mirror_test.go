package proxy

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// TestFaultBeforeMirror: what a fault aborts is not copied, and what it delays is copied whole.
func TestFaultBeforeMirror(t *testing.T) {
	main := backend(t, func(http.ResponseWriter, *http.Request) {})
	copies := make(chan string, 10)
	shadow := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		p, _ := io.ReadAll(r.Body)
		copies <- string(p)
	})
	rig := func(f plan.Fault) *rig {
		return newRig(t, to("c", func(p *plan.Rule) { p.Mirrors, p.Fault = []plan.Mirror{{Cluster: "m", Percent: 100}}, &f }),
			append(cluster("c", main), cluster("m", shadow)...)...)
	}
	r := rig(plan.Fault{AbortStatus: 418, AbortGRPC: -1, AbortPercent: 100})
	if res, _ := r.get("/"); res.StatusCode != 418 {
		t.Error(res.Status)
	}
	r.released("c", "m")
	if len(copies) != 0 {
		t.Error("what was aborted has been copied")
	}
	r = rig(plan.Fault{Delay: 20 * time.Millisecond, DelayPercent: 100, AbortGRPC: -1})
	c := dialRaw(t, r.addr)
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody") // which comes at once
	c.response("POST")
	if got := <-copies; got != "body" {
		t.Errorf("the copy has the body %q", got)
	}
	c.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n")
	r.await("the request under way", func(*worker) bool { return r.usage("c").Requests == 1 })
	c.send("2\r\ndy\r\n0\r\n\r\n")
	c.response("POST")
	if got := <-copies; got != "body" {
		t.Errorf("the copy has the body %q", got)
	}
	r.released("c", "m")
}
