package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// respondFunc is what a fake upstream says; nil: nothing.
type respondFunc func(m *dnsmessage.Message, network string) *dnsmessage.Message

// sockets opens a UDP and a TCP socket on one loopback port.
func sockets(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return udp, tcp
		}
		_ = tcp.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

// upstream runs a fake name server and returns its address.
func upstream(t testing.TB, respond respondFunc) string {
	t.Helper()
	udp, tcp := sockets(t)
	var group sync.WaitGroup
	t.Cleanup(func() {
		_ = udp.Close()
		_ = tcp.Close()
		group.Wait()
	})
	reply := func(p []byte, network string) []byte {
		var m dnsmessage.Message
		if err := m.Unpack(p); err != nil {
			return nil
		}
		m.Response = true
		out := respond(&m, network)
		if out == nil {
			return nil
		}
		b, err := out.Pack()
		if err != nil {
			t.Error(err)
		}
		return b
	}
	group.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if b := reply(buf[:n], "udp"); b != nil {
				_, _ = udp.WriteTo(b, from)
			}
		}
	})
	group.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			if p, err := readTCP(c); err == nil {
				if b := reply(p, "tcp"); b != nil {
					_ = writeTCP(c, b)
				}
			}
			_ = c.Close()
		}
	})
	return udp.LocalAddr().String()
}

// gives makes a fake upstream that answers A questions with an address.
func gives(addr string) respondFunc {
	return func(m *dnsmessage.Message, _ string) *dnsmessage.Message {
		if m.Questions[0].Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, record(m.Questions[0].Name.String(), addr, 60))
		}
		return m
	}
}

func record(name, addr string, ttl uint32) dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}
	a := netip.MustParseAddr(addr)
	if a.Is4() {
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}}
	}
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}}
}

// mesh is a Lookup that knows some names.
func mesh(_ context.Context, name string) ([]netip.Addr, bool, error) {
	switch name {
	case "reviews", "reviews.default.svc.cluster.local":
		return []netip.Addr{netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("::ffff:240.0.0.2"), netip.MustParseAddr("fd00::1")}, true, nil
	case "empty.mesh":
		return nil, true, nil
	case "broken.mesh":
		return nil, false, errors.New("the control plane is away")
	case "many.mesh":
		var out []netip.Addr
		for i := range 100 {
			out = append(out, netip.AddrFrom4([4]byte{240, 0, 1, byte(i)}))
		}
		return out, true, nil
	}
	return nil, false, nil
}

// serve runs a server and returns its address.
func serve(t testing.TB, cfg Config) string {
	t.Helper()
	if cfg.Lookup == nil {
		cfg.Lookup = mesh
	}
	cfg.Zone = "cluster.local."
	udp, tcp := sockets(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(cfg).Run(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return udp.LocalAddr().String()
}

// client is Go's own resolver, asking one server.
func client(server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}}
}

// ask sends one message and returns what comes back.
func ask(t *testing.T, network, server string, m dnsmessage.Message) dnsmessage.Message {
	t.Helper()
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var out dnsmessage.Message
	if err := out.Unpack(exchange(t, network, server, p)); err != nil {
		t.Fatal(err)
	}
	return out
}

func exchange(t *testing.T, network, server string, p []byte) []byte {
	t.Helper()
	c, err := net.Dial(network, server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if network == "tcp" {
		if err := writeTCP(c, p); err != nil {
			t.Fatal(err)
		}
		out, err := readTCP(c)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func message(name string, typ dnsmessage.Type) dnsmessage.Message {
	return dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
}

func withEDNS(m dnsmessage.Message, size int) dnsmessage.Message {
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(size, 0, false); err != nil {
		panic(err)
	}
	m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
	return m
}

func TestGoResolver(t *testing.T) {
	r := client(serve(t, Config{Upstreams: []string{upstream(t, gives("192.0.2.1"))}}))
	tests := []struct {
		name string
		want []string
	}{
		{"reviews.default.svc.cluster.local.", []string{"240.0.0.1", "240.0.0.2", "fd00::1"}},
		{"REVIEWS.default.svc.Cluster.local.", []string{"240.0.0.1", "240.0.0.2", "fd00::1"}},
		{"example.com.", []string{"192.0.2.1"}},
	}
	for _, tt := range tests {
		got, err := r.LookupHost(t.Context(), tt.name)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
	many, err := r.LookupHost(t.Context(), "many.mesh.") // more than fits: cut, and asked again over TCP
	if err != nil || len(many) != addressesMax {
		t.Errorf("%d addresses of many, %v", len(many), err)
	}
	for _, name := range []string{"nobody.default.svc.cluster.local.", "www.example.com.default.svc.cluster.local.", "cluster.local."} {
		_, err := r.LookupHost(t.Context(), name)
		if e, ok := errors.AsType[*net.DNSError](err); !ok || !e.IsNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.LookupHost(t.Context(), "broken.mesh."); err == nil {
		t.Error("an error of the lookup is no error")
	}
}

func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("dig is not installed")
	}
	host, port, _ := net.SplitHostPort(serve(t, Config{Upstreams: []string{upstream(t, gives("192.0.2.1"))}}))
	for _, tt := range []struct{ args, want string }{
		{"reviews A +short", "240.0.0.1\n240.0.0.2\n"},
		{"reviews AAAA +short", "fd00::1\n"},
		{"reviews MX", "status: NOERROR"},
		{"reviews A +noedns", "flags: qr aa rd ra; QUERY: 1, ANSWER: 2, AUTHORITY: 0, ADDITIONAL: 0"},
		{"reviews A", "EDNS: version: 0"},
		{"many.mesh A +tcp +short", "240.0.1."},
		{"many.mesh A +noedns +ignore", "flags: qr aa tc rd ra"},
		{"many.mesh A +ignore +bufsize=4096", "ANSWER: 64"},
		{"x.cluster.local A", "status: NXDOMAIN"},
		{"example.com A +short", "192.0.2.1\n"},
	} {
		args := append([]string{"@" + host, "-p", port, "+tries=1", "+time=5"}, strings.Fields(tt.args)...)
		out, err := exec.CommandContext(t.Context(), dig, args...).CombinedOutput()
		lines := strings.SplitAfter(string(out), "\n")
		slices.Sort(lines)
		if err != nil || !strings.Contains(string(out), tt.want) && !strings.Contains(strings.Join(lines, ""), tt.want) {
			t.Errorf("dig %s: %v\n%s", tt.args, err, out)
		}
	}
}

func TestAnswers(t *testing.T) {
	server := serve(t, Config{Upstreams: []string{upstream(t, gives("192.0.2.1"))}})
	for _, network := range []string{"udp", "tcp"} {
		m := ask(t, network, server, message("ReViews.", dnsmessage.TypeA))
		if !m.Response || m.ID != 4711 || !m.Authoritative || !m.RecursionAvailable || !m.RecursionDesired || m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 2 ||
			m.Answers[0].Header.TTL != 30 || m.Answers[0].Header.Name.String() != "ReViews." || m.Questions[0].Name.String() != "ReViews." {
			t.Errorf("%s: %+v", network, m)
		}
		for _, typ := range []dnsmessage.Type{dnsmessage.TypeMX, dnsmessage.TypeHINFO, dnsmessage.TypeSRV, 65} {
			if m := ask(t, network, server, message("reviews.", typ)); m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 {
				t.Errorf("%s %s: %+v", network, typ, m)
			}
		}
		if m := ask(t, network, server, message("empty.mesh.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 {
			t.Errorf("%s: %+v", network, m)
		}
		if m := ask(t, network, server, message("broken.mesh.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("%s: %+v", network, m)
		}
		chaos := message("reviews.", dnsmessage.TypeA)
		chaos.Questions[0].Class = dnsmessage.ClassCHAOS
		if m := ask(t, network, server, chaos); len(m.Answers) != 1 || m.Questions[0].Class != dnsmessage.ClassCHAOS {
			t.Errorf("%s: another class is not passed on: %+v", network, m)
		}
		two := message("reviews.", dnsmessage.TypeA)
		two.Questions = append(two.Questions, two.Questions[0])
		none := message("reviews.", dnsmessage.TypeA)
		none.Questions = nil
		for _, bad := range []dnsmessage.Message{two, none} {
			if m := ask(t, network, server, bad); m.RCode != dnsmessage.RCodeFormatError || m.ID != 4711 {
				t.Errorf("%s: %+v", network, m)
			}
		}
	}
}

// TestBehindKnow: where the mesh cannot tell, those behind are asked who know its names, too; where it can, they are not.
func TestBehindKnow(t *testing.T) {
	server := serve(t, Config{Upstreams: []string{upstream(t, gives("192.0.2.1"))}, BehindKnow: true})
	if m := ask(t, "udp", server, message("broken.mesh.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 1 {
		t.Errorf("what the mesh cannot tell: %+v", m)
	}
	if m := ask(t, "udp", server, message("none.cluster.local.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("what the mesh knows not to be: %+v", m)
	}
}

func TestTruncation(t *testing.T) {
	server := serve(t, Config{})
	if m := ask(t, "udp", server, message("many.mesh.", dnsmessage.TypeA)); !m.Truncated || len(m.Answers) != 0 {
		t.Errorf("without EDNS: %+v", m.Header)
	}
	if m := ask(t, "udp", server, withEDNS(message("many.mesh.", dnsmessage.TypeA), 800)); !m.Truncated || len(m.Additionals) != 1 {
		t.Errorf("with 800 bytes: %+v", m.Header)
	}
	if m := ask(t, "udp", server, withEDNS(message("many.mesh.", dnsmessage.TypeA), 4096)); m.Truncated || len(m.Answers) != addressesMax || len(m.Additionals) != 1 {
		t.Errorf("with 4096 bytes: %+v, %d answers", m.Header, len(m.Answers))
	}
	if m := ask(t, "tcp", server, message("many.mesh.", dnsmessage.TypeA)); m.Truncated || len(m.Answers) != addressesMax {
		t.Errorf("TCP: %+v, %d answers", m.Header, len(m.Answers))
	}
}

// TestForwarding checks that a foreign question and its answer pass as they are, but for the id.
func TestForwarding(t *testing.T) {
	var ids sync.Map
	var same atomic.Int32
	up := upstream(t, func(m *dnsmessage.Message, network string) *dnsmessage.Message {
		if _, again := ids.LoadOrStore(m.ID, true); again || m.ID == 4711 {
			same.Add(1)
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 7},
			Body:   &dnsmessage.TXTResource{TXT: []string{network, m.Questions[0].Name.String()}},
		})
		if network == "udp" && m.Questions[0].Name.String() == "large.example." {
			m.Truncated, m.Answers = true, nil
		}
		if m.Questions[0].Name.String() == "huge.example." {
			for range 200 {
				m.Answers = append(m.Answers, m.Answers[0])
			}
		}
		return m
	})
	server := serve(t, Config{Upstreams: []string{up}})
	for _, network := range []string{"udp", "tcp"} {
		for range 10 {
			m := ask(t, network, server, withEDNS(message("WwW.Example.", dnsmessage.TypeTXT), 1232))
			if m.ID != 4711 || len(m.Answers) != 1 || m.Answers[0].Header.TTL != 7 || len(m.Additionals) != 1 {
				t.Fatalf("%+v", m)
			}
			if txt := m.Answers[0].Body.(*dnsmessage.TXTResource).TXT; txt[0] != network || txt[1] != "WwW.Example." {
				t.Errorf("%q", txt)
			}
		}
	}
	if n := same.Load(); n > 1 {
		t.Errorf("%d of 20 ids were not random", n)
	}
	if m := ask(t, "udp", server, message("large.example.", dnsmessage.TypeTXT)); !m.Truncated {
		t.Error("truncation is not passed on")
	}
	if m := ask(t, "udp", server, message("huge.example.", dnsmessage.TypeTXT)); !m.Truncated || len(m.Answers) != 0 || m.ID != 4711 {
		t.Errorf("an answer above what the client takes: %+v", m.Header)
	}
	if m := ask(t, "tcp", server, message("huge.example.", dnsmessage.TypeTXT)); len(m.Answers) != 201 {
		t.Errorf("%d answers over TCP", len(m.Answers))
	}
}

func TestFailover(t *testing.T) {
	dead, tcp := sockets(t) // a port at which nobody listens any more
	_ = dead.Close()
	_ = tcp.Close()
	silent := upstream(t, func(*dnsmessage.Message, string) *dnsmessage.Message { return nil })
	says := func(code dnsmessage.RCode) string {
		return upstream(t, func(m *dnsmessage.Message, _ string) *dnsmessage.Message {
			m.RCode = code
			return m
		})
	}
	good := upstream(t, gives("192.0.2.1"))
	forger := upstream(t, func(m *dnsmessage.Message, _ string) *dnsmessage.Message {
		m.ID++
		return m
	})
	liar := upstream(t, func(m *dnsmessage.Message, _ string) *dnsmessage.Message {
		m.Questions[0].Name = dnsmessage.MustNewName("other.")
		return m
	})
	broken := says(dnsmessage.RCodeServerFailure)
	tests := []struct {
		what string
		up   []string
		want dnsmessage.RCode
		n    int
	}{
		{"refused", []string{dead.LocalAddr().String(), good}, dnsmessage.RCodeSuccess, 1},
		{"server failure", []string{broken, good}, dnsmessage.RCodeSuccess, 1},
		{"only server failures", []string{broken, broken}, dnsmessage.RCodeServerFailure, 0},
		{"refusal after silence is passed on", []string{says(dnsmessage.RCodeRefused), dead.LocalAddr().String()}, dnsmessage.RCodeRefused, 0},
		{"no such name is an answer", []string{says(dnsmessage.RCodeNameError), good}, dnsmessage.RCodeNameError, 0},
		{"silence", []string{silent, good}, dnsmessage.RCodeSuccess, 1},
		{"another id", []string{forger, good}, dnsmessage.RCodeSuccess, 1},
		{"another question", []string{liar, good}, dnsmessage.RCodeSuccess, 1},
		{"nobody", nil, dnsmessage.RCodeServerFailure, 0},
		{"nobody alive", []string{dead.LocalAddr().String()}, dnsmessage.RCodeServerFailure, 0},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			server := serve(t, Config{Upstreams: tt.up})
			if m := ask(t, "udp", server, message("example.com.", dnsmessage.TypeA)); m.RCode != tt.want || len(m.Answers) != tt.n {
				t.Errorf("%s, %d answers", m.RCode, len(m.Answers))
			}
		})
	}
}

func TestGarbage(t *testing.T) {
	server := serve(t, Config{})
	c, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer := message("reviews.", dnsmessage.TypeA)
	answer.Response = true
	response, err := answer.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{{}, {1}, make([]byte, 11), response, slices.Repeat([]byte{0xff}, 600)} {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	// None of that was answered: what comes first is the answer to a question.
	q, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: 5}, Questions: answer.Questions}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(q); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 600)
	if _, err := c.Read(buf); err != nil || buf[1] != 5 {
		t.Errorf("%x, %v", buf[:12], err)
	}
	bad, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	_ = bad.SetDeadline(time.Now().Add(10 * time.Second))
	if err := writeTCP(bad, []byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Read(buf); err == nil {
		t.Error("garbage over TCP is answered")
	}
}

// TestQueriesAreBounded: while as many questions as may be are under way, more are dropped, and all is well after.
func TestQueriesAreBounded(t *testing.T) {
	release := make(chan struct{})
	var waiting, most atomic.Int32
	full := make(chan struct{})
	tell := sync.OnceFunc(func() { close(full) }) // the bound may be reached again when the first ones have ended
	server := serve(t, Config{Lookup: func(ctx context.Context, name string) ([]netip.Addr, bool, error) {
		if !strings.HasPrefix(name, "slow") {
			return nil, true, nil
		}
		n := waiting.Add(1)
		defer waiting.Add(-1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		if n == queriesMax {
			tell()
		}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil, true, nil
	}})
	c, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := message("slow.", dnsmessage.TypeA)
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.After(30 * time.Second)
	for isFull := false; !isFull; {
		for range 50 { // a burst that the socket's buffer holds; what the kernel drops is sent again
			if _, err := c.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-full:
			isFull = true
		case <-deadline:
			t.Fatalf("%d questions under way", waiting.Load())
		case <-time.After(time.Millisecond):
		}
	}
	for range 200 {
		_, _ = c.Write(p)
	}
	close(release)
	if m := ask(t, "tcp", server, message("fast.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeSuccess {
		t.Errorf("%+v", m)
	}
	if n := most.Load(); n > queriesMax {
		t.Errorf("%d questions at once", n)
	}
}

func TestRunEnds(t *testing.T) {
	udp, tcp := sockets(t)
	started := make(chan struct{})
	s := New(Config{Lookup: func(ctx context.Context, _ string) ([]netip.Addr, bool, error) {
		close(started)
		<-ctx.Done()
		return nil, false, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, udp, tcp) }()
	idle, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	c, err := net.Dial("udp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := message("slow.", dnsmessage.TypeA)
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
	<-started
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	udp, tcp = sockets(t)
	go func() { done <- s.Run(t.Context(), udp, tcp) }()
	_ = udp.Close()
	if err := <-done; err == nil {
		t.Error("no error although a socket was closed")
	}
	if _, err := tcp.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error("the other socket is left open")
	}
}

func FuzzAnswer(f *testing.F) {
	for _, m := range []dnsmessage.Message{message("reviews.", dnsmessage.TypeA), withEDNS(message("many.mesh.", dnsmessage.TypeA), 800), message("x.cluster.local.", dnsmessage.TypeMX), message("example.com.", dnsmessage.TypeAAAA)} {
		p, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network") }
	s := New(Config{Lookup: mesh, Upstreams: []string{"192.0.2.1:53"}, Dial: dial, Zone: "cluster.local"})
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, network := range []string{"udp", "tcp"} {
			out := s.answer(t.Context(), p, network)
			if out == nil {
				continue
			}
			var m dnsmessage.Message
			if err := m.Unpack(out); err != nil {
				t.Fatalf("%x is answered by %x: %v", p, out, err)
			}
			if !m.Response || out[0] != p[0] || out[1] != p[1] || network == "udp" && len(out) > udpMaxBytes {
				t.Fatalf("%x is answered by %+v", p, m)
			}
		}
		_, _ = readRecords(p, "reviews", dnsmessage.TypeA)
	})
}
