package proxy

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/telemetry"
)

// tunnelHeadMax bounds the head of an HTTP proxy's answer.
const tunnelHeadMax = 8 << 10

var (
	errTunnelMore = errors.New("the head is not complete")
	errNoAnswer   = errors.New("not an HTTP/1 response")
)

// tunnelling asks an HTTP proxy, to which a byte relay has connected, for a
// tunnel to somewhere else (CONNECT, RFC 9110 section 9.3.6). Once it is granted
// the connection is the relay's.
type tunnelling struct {
	d    *tcpDial
	c    *loop.Conn
	to   *plan.Tunnel
	wait loop.Timer
	over bool
}

// tunnel asks for the tunnel that the chain orders.
func (d *tcpDial) tunnel(c *loop.Conn) {
	to := d.to
	t := &tunnelling{d: d, c: c, to: to}
	d.asking = t
	c.SetHandler(t)
	if to.Post {
		t.fail(telemetry.TunnelRefused, fmt.Errorf("a tunnel by POST to %s: this proxy asks by CONNECT only; set tunnel.protocol to CONNECT", to.Target))
		return
	}
	wait := d.choice.Cluster.Plan().ConnectTimeout
	if wait == 0 {
		wait = connectTimeout
	}
	t.wait.Init(d.s.w.loop, func() {
		t.fail(telemetry.ConnectTimeout, fmt.Errorf("no answer from the HTTP proxy %s within %s", d.addr, wait))
	})
	t.wait.Reset(wait)
	c.Write([]byte("CONNECT " + to.Target + " HTTP/1.1\r\nHost: " + to.Target + "\r\n\r\n"))
}

// fail gives the connection up; the next endpoint may do better.
func (t *tunnelling) fail(why telemetry.Reason, err error) {
	if t.over {
		return
	}
	t.cancel()
	t.d.failed(why, err)
}

// cancel gives the connection up without a word.
func (t *tunnelling) cancel() {
	t.over = true
	t.wait.Stop()
	t.d.asking = nil
	t.c.Abort()
}

// OnData reads the proxy's answer; what follows it is not ours.
func (t *tunnelling) OnData(c *loop.Conn, p []byte) int {
	if t.over {
		return len(p)
	}
	used := 0
	for {
		status, n, err := tunnelAnswer(p[used:])
		switch {
		case errors.Is(err, errTunnelMore):
			return used
		case err != nil:
			t.fail(telemetry.UpstreamProtocolError, fmt.Errorf("tunnel to %s by %s: %w", t.to.Target, t.d.addr, err))
			return len(p)
		case status >= 300 || status == 101:
			t.fail(telemetry.TunnelRefused, fmt.Errorf("the HTTP proxy %s answers %d to a tunnel to %s", t.d.addr, status, t.to.Target))
			return len(p)
		}
		if used += n; status >= 200 {
			break
		}
	}
	t.over = true
	t.wait.Stop()
	t.d.asking = nil
	t.d.done(c, telemetry.None, nil)
	return used
}

// OnEOF: the proxy closes instead of an answer.
func (t *tunnelling) OnEOF(*loop.Conn) {
	t.fail(telemetry.TunnelRefused, fmt.Errorf("the HTTP proxy %s closes instead of a tunnel to %s", t.d.addr, t.to.Target))
}

// OnDrain does nothing: little is written.
func (t *tunnelling) OnDrain(*loop.Conn) {}

// OnClose gives the connection's place in the cluster's limit back.
func (t *tunnelling) OnClose(_ *loop.Conn, err error) {
	t.d.choice.Cluster.ReleaseConnection()
	t.fail(telemetry.TunnelRefused, fmt.Errorf("the HTTP proxy %s ends the connection instead of a tunnel to %s: %w", t.d.addr, t.to.Target, errOr(err)))
}

// tunnelAnswer reads the head of a response (RFC 9112 section 4) and returns its length.
func tunnelAnswer(p []byte) (status, n int, err error) {
	end := bytes.Index(p, []byte("\r\n\r\n"))
	if end < 0 && len(p) < tunnelHeadMax {
		return 0, 0, errTunnelMore
	}
	if end < 0 || end > tunnelHeadMax {
		return 0, 0, fmt.Errorf("%w: the head is longer than %d bytes", errNoAnswer, tunnelHeadMax)
	}
	rest, ok := bytes.CutPrefix(p, []byte("HTTP/1."))
	if !ok || len(rest) < 5 || rest[0] < '0' || rest[0] > '9' || rest[1] != ' ' || rest[2] < '1' || rest[2] > '5' || rest[5] != ' ' && rest[5] != '\r' {
		return 0, 0, errNoAnswer
	}
	for _, c := range rest[2:5] {
		if c < '0' || c > '9' {
			return 0, 0, errNoAnswer
		}
		status = status*10 + int(c-'0')
	}
	return status, end + 4, nil
}
