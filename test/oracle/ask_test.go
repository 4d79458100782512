package oracle

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/test/world"
)

const (
	// patience bounds one request.
	patience = 30 * time.Second
	// lull is how long a connection must stay open after an answer that does not announce its end to count as kept.
	lull = 30 * time.Millisecond
)

// connection is one to a proxy, with what has been read of it too early.
type connection struct {
	net.Conn
	in *bufio.Reader
}

func (r *rig) hangUp() {
	for name, c := range r.conns {
		_ = c.Close()
		delete(r.conns, name)
	}
}

// ask sends a request as often as it says, and tells what came of it.
func (r *rig) ask(ctx context.Context, q *request) observation {
	ctx, cancel := context.WithTimeout(ctx, patience+time.Duration(q.count)*patience/10)
	defer cancel()
	if q.wait > 0 {
		select {
		case <-time.After(q.wait):
		case <-ctx.Done():
		}
	}
	r.journal.Take()
	if q.count > 1 {
		return r.askMany(ctx, q)
	}
	o := r.askOnce(ctx, q, q.text)
	if q.await > 0 {
		short, cancel := context.WithTimeout(ctx, patience/2)
		defer cancel()
		if err := r.journal.Await(short, q.await); err != nil {
			o.set("missing", err.Error())
		}
	}
	o.records(r.received(q))
	return o
}

// received is what the backends noted, but for what a former request left behind.
func (r *rig) received(q *request) []world.Record {
	if q.target != "" {
		r.late[q.target] = true
	}
	return slices.DeleteFunc(r.journal.Take(), func(rec world.Record) bool {
		return rec.Target != q.target && r.late[rec.Target]
	})
}

// askMany sends a request many times and counts the answers, or notes each.
func (r *rig) askMany(ctx context.Context, q *request) observation {
	out := observation{}
	answers := make([]observation, q.count)
	one := func(i int) {
		answers[i] = r.askOnce(ctx, q, strings.ReplaceAll(q.text, "{i}", strconv.Itoa(i)))
	}
	if q.parallel {
		var group sync.WaitGroup
		for i := range answers {
			group.Go(func() { one(i) })
		}
		group.Wait()
	} else {
		for i := range answers {
			one(i)
		}
	}
	counts := map[string]int{}
	for i, a := range answers {
		who, _, _ := strings.Cut(a["body"], " ")
		if a["status"] != "200" {
			who = ""
		}
		text := strings.TrimSpace(a["status"] + " " + who + " " + a["error"])
		if q.each {
			out.set(strconv.Itoa(i), text)
		}
		counts[text]++
	}
	if !q.each {
		for text, n := range counts {
			out.set("count:"+strings.ReplaceAll(text, " ", "-"), strconv.Itoa(n))
		}
	}
	seen := map[string]int{}
	for _, rec := range r.received(q) {
		seen[rec.Backend]++
	}
	if !q.each {
		for name, n := range seen {
			out.set("received:"+name, strconv.Itoa(n))
		}
	}
	return out
}

// askOnce sends a text and reads the answer.
func (r *rig) askOnce(ctx context.Context, q *request, text string) observation {
	o := observation{}
	c := r.conns[q.conn]
	if q.conn == "" || c == nil {
		var err error
		if c, err = r.dial(ctx, q); err != nil {
			if o.set("error", ending(o, cause(err))); o["error"] != noAnswer {
				o.set("error", "connect: "+o["error"])
			}
			return o
		}
		if t, ok := c.Conn.(*tls.Conn); ok {
			s := t.ConnectionState()
			o.set("tls", fmt.Sprintf("%s %q %q", tls.VersionName(s.Version), s.NegotiatedProtocol, s.PeerCertificates[0].Subject.CommonName))
		}
	}
	if q.conn != "" {
		r.conns[q.conn] = c
	} else {
		defer func() { _ = c.Close() }()
	}
	var err error
	switch {
	case q.tcp:
		err = askTCP(o, c, q, text)
	case q.h2:
		err = askHTTP2(ctx, o, c, text, q.tls)
	default:
		err = askHTTP1(o, c, q, text)
	}
	if err != nil {
		o.set("error", ending(o, cause(err)))
	}
	return o
}

// noAnswer is the end of a connection on which nothing came.
const noAnswer = "no answer"

// lost is what Go's HTTP/2 client says of a connection that has ended before it wrote the first request.
const lost = "http2: client conn could not be established"

// ending is how a connection ended. If no answer came it does not matter by what packet: that depends on whether the
// proxy had read the request when it hung up.
func ending(o observation, cause string) string {
	if _, answered := o["status"]; !answered && (cause == "end" || cause == "reset" || cause == lost) {
		return noAnswer
	}
	return cause
}

// dial connects as the request says.
func (r *rig) dial(ctx context.Context, q *request) (*connection, error) {
	place := r.places[peerAddress]
	from := netip.MustParseAddr(peerAddress)
	if q.position == atClient {
		place, from = r.places[clientAddress], netip.Addr{}
	}
	if q.from.IsValid() {
		from = q.from
	}
	c, err := place.Dial(ctx, from, q.to)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if q.tls {
		config, err := r.clientTLS(q)
		if err != nil {
			return nil, err
		}
		t := tls.Client(c, config)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = c.Close()
			return nil, err
		}
		c = t
	}
	return &connection{c, bufio.NewReader(c)}, nil
}

// clientTLS shows the certificate that a request asks for. Who answers is observed, not verified.
func (r *rig) clientTLS(q *request) (*tls.Config, error) {
	c := &tls.Config{InsecureSkipVerify: true, ServerName: q.sni, NextProtos: q.alpn}
	namespace, account, mesh := strings.Cut(q.cert, "/")
	switch {
	case mesh:
		cert, err := r.mesh.Authority().Certificate(identity.ID{TrustDomain: world.TrustDomain, Namespace: namespace, ServiceAccount: account}, time.Hour)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{cert}
		if c.NextProtos == nil {
			c.NextProtos = []string{"istio-http/1.1", "istio"}
		}
	case q.cert == "client":
		c.Certificates = []tls.Certificate{r.certs.client}
	}
	return c, nil
}

// cause is what an error says that does not differ from run to run.
func cause(err error) string {
	var alert tls.AlertError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return "end"
	case errors.As(err, &alert):
		return alert.Error()
	}
	return err.Error()
}

// askTCP sends bytes and takes what comes back within a lull after the first.
func askTCP(o observation, c *connection, q *request, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	if _, err := c.in.Peek(1); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(lull)); err != nil {
		return err
	}
	var got bytes.Buffer
	_, err := io.Copy(&got, c.in)
	o.set("body", brief(got.Bytes()))
	o.set("closed", strconv.FormatBool(err == nil))
	return nil
}

func askHTTP1(o observation, c *connection, q *request, text string) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	begun := text
	if q.late > 0 {
		begun, text = text[:len(text)-1], text[len(text)-1:]
	}
	_, err := io.WriteString(c, begun)
	if q.late > 0 && err == nil {
		<-time.After(q.late)
		_, err = io.WriteString(c, text)
	}
	if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return err // An answer may have come before the end of the request.
	}
	method, _, _ := strings.Cut(text, " ")
	var res *http.Response
	for {
		var err error
		if res, err = http.ReadResponse(c.in, &http.Request{Method: method}); err != nil {
			return err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			break
		}
		o.add("interim", res.Status)
	}
	o.set("proto", res.Proto)
	if len(res.TransferEncoding) > 0 {
		o.set("header:transfer-encoding", strings.Join(res.TransferEncoding, ","))
	}
	if method == http.MethodConnect && res.StatusCode < 300 {
		o.response(res) // what follows is a tunnel
		return nil
	}
	if q.after != "" {
		o.response(res)
		if _, err := io.WriteString(c, q.after); err != nil {
			return err
		}
		got := make([]byte, len(q.after))
		_, err := io.ReadFull(c.in, got)
		o.set("after", string(got))
		return err
	}
	body, err := io.ReadAll(res.Body)
	o.response(res)
	o.set("body", brief(body))
	if err != nil {
		return err
	}
	if q.count == 1 {
		o.closed(c, res)
	}
	return nil
}

// closed notes whether the connection stays open after the answer.
func (o observation) closed(c *connection, res *http.Response) {
	if res.Close {
		o.set("closed", "announced")
		return
	}
	if c.SetReadDeadline(time.Now().Add(lull)) != nil {
		return
	}
	more, err := c.in.Peek(1)
	switch {
	case len(more) > 0:
		rest, _ := c.in.Peek(c.in.Buffered())
		o.set("closed", "more came: "+brief(rest))
	case errors.Is(err, os.ErrDeadlineExceeded):
		o.set("closed", "no")
	default:
		o.set("closed", cause(err))
	}
}

// askHTTP2 sends the text as HTTP/2. The body of a gRPC request becomes one message.
func askHTTP2(ctx context.Context, o observation, c *connection, text string, secure bool) error {
	tr := &http2.Transport{AllowHTTP: true, DisableCompression: true}
	cc, err := tr.NewClientConn(c.Conn)
	if err != nil {
		return err
	}
	defer func() { _ = cc.Close() }()
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return err
	}
	req = req.WithContext(ctx)
	req.RequestURI, req.URL.Host, req.URL.Scheme = "", req.Host, "http"
	if secure {
		req.URL.Scheme = "https"
	}
	if strings.HasPrefix(req.Header.Get("Content-Type"), "application/grpc") {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return err
		}
		frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(append(frame, body...))), -1
		req.Header.Del("Content-Length")
	}
	res, err := cc.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	o.set("proto", res.Proto)
	o.response(res)
	o.set("body", brief(body))
	return err
}
