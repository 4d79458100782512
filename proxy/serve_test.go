package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/proxy/probe"
)

// crowded serves the status port beside an application with more metrics than any socket holds, until the test ends.
// asked tells of each time that they are asked for.
func crowded(t *testing.T) (address string, asked chan struct{}) {
	t.Helper()
	asked = make(chan struct{}, guestsMax)
	metrics := bytes.Repeat([]byte("app_up 1\n"), 1<<20)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			asked <- struct{}{}
			_, _ = w.Write(metrics)
		}
	}))
	t.Cleanup(app.Close)
	port := app.URL[strings.LastIndexByte(app.URL, ':')+1:]
	probes, err := probe.ReadProbes(`{"/app-health/a/livez":{"httpGet":{"path":"/live","port":` + port + `},"timeoutSeconds":60}}`)
	if err != nil {
		t.Fatal(err)
	}
	r := startRig(t)
	if r.p.app, err = probe.New(probe.Config{Probes: probes, Scrape: probe.Scrape{Scrape: "true", Port: port}}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- r.p.serveHTTP(ctx, l, r.p.statusMux()) }()
	t.Cleanup(func() {
		end()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), asked
}

// besiege opens so many connections from 127.0.0.2, sends text on each, and reads nothing.
func besiege(t *testing.T, address string, n int, text string) []net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: patience}
	out := make([]net.Conn, n)
	for i := range out {
		c, err := d.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		_, _ = io.WriteString(c, text) // it may have had to go already
		out[i] = c
	}
	return out
}

// from asks from an address.
func from(t *testing.T, address, url string) (code int, body string) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c := http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}, Timeout: patience}
	res, err := c.Do(request(t, "GET", url, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return res.StatusCode, string(text)
}

// TestReadersThatDoNotRead: who asks for metrics again and again and takes none keeps neither the kubelet nor Prometheus
// out.
func TestReadersThatDoNotRead(t *testing.T) {
	address, asked := crowded(t)
	besiege(t, address, guestsMax/2, "GET /stats/prometheus HTTP/1.1\r\nHost: a\r\n\r\n")
	for range readersMax {
		<-asked
	}
	for range 3 {
		if code, body := from(t, "127.0.0.1", "http://"+address+"/app-health/a/livez"); code != 200 {
			t.Error(code, body)
		}
	}
	for _, path := range []string{"/stats/prometheus", "/metrics"} {
		if code, body := from(t, "127.0.0.3", "http://"+address+path); code != 200 || strings.Count(body, "app_up 1\n") != 1<<20 {
			t.Errorf("%s: %d, %d bytes", path, code, len(body))
		}
	}
}

// TestGuests: who opens all connections that there are loses the oldest of them to the next one.
func TestGuests(t *testing.T) {
	address, _ := crowded(t)
	all := besiege(t, address, guestsMax+1, "")
	_ = all[0].SetReadDeadline(time.Now().Add(patience))
	if n, err := all[0].Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the first one has its place: %v", err)
	}
	if code, body := from(t, "127.0.0.1", "http://"+address+"/app-health/a/livez"); code != 200 {
		t.Error(code, body)
	}
	_, _ = io.WriteString(all[guestsMax], "GET /healthz/ready HTTP/1.1\r\nHost: a\r\n\r\n")
	_ = all[guestsMax].SetReadDeadline(time.Now().Add(patience))
	if n, err := all[guestsMax].Read(make([]byte, 1)); n == 0 {
		t.Errorf("the last one has lost its place: %v", err)
	}
}
