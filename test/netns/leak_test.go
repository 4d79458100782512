package netns

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// held is what a proxy holds.
type held struct{ files, goroutines int }

// holds reads it from the proxy's own metrics.
func (w *workload) holds() (held, error) {
	var h held
	text, err := w.admin("/stats/prometheus")
	if err != nil {
		return h, err
	}
	for _, m := range []struct {
		name string
		out  *int
	}{{"process_open_fds", &h.files}, {"go_goroutines", &h.goroutines}} {
		_, rest, ok := strings.Cut(text, "\n"+m.name+" ")
		if !ok {
			return h, fmt.Errorf("no metric %s", m.name)
		}
		value, _, _ := strings.Cut(rest, "\n")
		if *m.out, err = strconv.Atoi(value); err != nil {
			return h, err
		}
	}
	return h, nil
}

// TestNothingLeaks lets clients of all kinds come and go, with changes of configuration and a restart in between; in
// the end the proxies hold what they held after the first of them.
func TestNothingLeaks(t *testing.T) {
	w := newWorld(t, root(t))
	serveHTTP(t, w.server.listen(t, ":8081"))
	round := func() {
		for i := range 20 {
			w.abuse(t, i)
		}
		w.apply(destinationRule + "---\n" + virtualService("http: [{route: [{destination: {host: shop, subset: v1, port: {number: 80}}}]}]"))
		w.status(t, "http://shop/echo", http.StatusOK, "")
		w.apply(meshMode("STRICT"))
		w.status(t, "http://shop/echo", http.StatusOK, "")
		w.remove("VirtualService", "shop")
		w.remove("DestinationRule", "shop")
		w.removeFrom("istio-system", "PeerAuthentication", "default")
		w.status(t, "http://shop/echo", http.StatusOK, "")
	}
	round()
	proxies := []*workload{w.client, w.server}
	var before []held
	for _, p := range proxies {
		h, err := p.holds()
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, h)
	}
	for range 12 {
		round()
	}
	for i, p := range proxies {
		// A few connections to other proxies may be kept, as they were at the first look.
		const slack = 8
		eventually(t, p.name+" holds what it held", func() error {
			now, err := p.holds()
			if err == nil && (now.files > before[i].files+slack || now.goroutines > before[i].goroutines+slack) {
				err = fmt.Errorf("%+v, before %+v", now, before[i])
			}
			return err
		})
		now, err := p.holds()
		t.Logf("%s: %+v, before %+v, %v", p.name, now, before[i], err)
		if t.Failed() {
			text, _ := p.admin("/debug/pprof/goroutine?debug=1")
			t.Log(text)
		}
	}
}

// abuse is one client of each kind.
func (w *world) abuse(t *testing.T, i int) {
	for _, address := range []string{"shop:80", "shop:81", "shop:84", w.server.address(t, "tcp4") + ":7009"} {
		c := w.client.mustDial(t, address)
		switch i % 5 {
		case 0: // Says nothing.
		case 1:
			_, _ = io.WriteString(c, "GET /big?n=10000000 HTTP/1.1\r\nHost: shop\r\n\r\n")
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		case 2:
			_, _ = io.WriteString(c, "POST /echo HTTP/1.1\r\nHost: shop\r\nContent-Length: 100\r\n\r\nhalf")
		case 3:
			_, _ = io.WriteString(c, "\x16\x03\x01\xff\xffgarbage")
			_ = c.CloseWrite()
		case 4:
			_, _ = io.WriteString(c, "GET /echo HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
			if res, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		}
		_ = c.Close()
	}
}
