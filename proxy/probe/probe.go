// Package probe is what a proxy does for its application on the metrics port: it answers the kubelet's probes and
// lifecycle handlers, which know nothing of the mesh, by asking the application itself, and hands the application's
// metrics out with its own.
//
// In: a Config, in Istio's formats, and requests from anybody who reaches the port, who can have the application asked
// what the Config says and nothing else. Out: the application's answers. How many ask at a time is bounded by who
// listens for them: a bound here would let one caller keep the kubelet out. The package must not know Kubernetes' types
// or the plan. A Handler is an http.Handler: any goroutine may call it.
package probe

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TimeoutMax is the longest that the application is waited for.
const TimeoutMax = 5 * time.Minute

// Bounds of what is asked.
const (
	// timeoutDefault is Kubernetes' of a probe, lifecycleTimeout ours of a handler, whose end the kubelet awaits.
	timeoutDefault   = time.Second
	lifecycleTimeout = 2 * time.Minute
	// bodyMax is as much of an answer as the kubelet reads (10 KiB).
	bodyMax = 10 << 10
	// redirectsMax is the redirection, of one probe, at which the kubelet gives up.
	redirectsMax = 10
	// probesMax bounds the probes of a Config: three probes and two handlers of many containers.
	probesMax = 2048
)

// Config says what the application can be asked.
type Config struct {
	// Probes are the probes and handlers by the path under which the kubelet asks for them, such as
	// /app-health/web/livez (Istio's ISTIO_KUBE_APP_PROBERS).
	Probes map[string]Probe `json:",omitempty"`
	// Scrape says where the application's metrics are (Istio's ISTIO_PROMETHEUS_ANNOTATIONS).
	Scrape Scrape `json:",omitzero"`

	// Address is the application's, the pod's own; invalid: loopback.
	Address netip.Addr `json:"-"`
	// Mark is the SO_MARK of connections to the application, by which the capture rules let them pass; 0: none.
	Mark uint32 `json:"-"`
}

// Probe is one probe: exactly one of the pointers is set.
type Probe struct {
	HTTPGet        *HTTPGet   `json:"httpGet,omitempty"`
	TCPSocket      *TCPSocket `json:"tcpSocket,omitempty"`
	GRPC           *GRPC      `json:"grpc,omitempty"`
	TimeoutSeconds int        `json:"timeoutSeconds,omitempty"` // 0: 1
}

// HTTPGet is a request; an answer below 400 is a success.
type HTTPGet struct {
	Path        string `json:"path,omitempty"`
	Port        uint16 `json:"port"`
	Scheme      string `json:"scheme,omitempty"` // HTTP (also empty) or HTTPS, whose certificate is not looked at
	HTTPHeaders []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"httpHeaders,omitempty"`
}

// TCPSocket is a connection; that it opens is a success.
type TCPSocket struct {
	Port uint16 `json:"port"`
}

// GRPC is a call of grpc.health.v1.Health/Check.
type GRPC struct {
	Port    uint16 `json:"port"`
	Service string `json:"service,omitempty"`
}

// Validate returns all faults at once.
func (c *Config) Validate() error {
	var faults []error
	if len(c.Probes) > probesMax {
		return fmt.Errorf("%d probes, at most %d are allowed", len(c.Probes), probesMax)
	}
	for path, p := range c.Probes {
		kinds := 0
		for _, set := range []bool{p.HTTPGet != nil, p.TCPSocket != nil, p.GRPC != nil} {
			if set {
				kinds++
			}
		}
		switch {
		case kinds != 1:
			faults = append(faults, fmt.Errorf("probe %s: want one of httpGet, tcpSocket and grpc", path))
		case p.port() == 0:
			faults = append(faults, fmt.Errorf("probe %s: it names no port", path))
		case !strings.HasPrefix(path, "/app-health/") && !strings.HasPrefix(path, lifecyclePrefix):
			faults = append(faults, fmt.Errorf("probe %s: want a path below /app-health/ or %s", path, lifecyclePrefix))
		}
	}
	return errors.Join(faults...)
}

const lifecyclePrefix = "/app-lifecycle/"

func (p Probe) port() uint16 {
	switch {
	case p.HTTPGet != nil:
		return p.HTTPGet.Port
	case p.TCPSocket != nil:
		return p.TCPSocket.Port
	case p.GRPC != nil:
		return p.GRPC.Port
	}
	return 0
}

// ReadProbes reads the probes from Istio's JSON; unknown fields are passed over.
func ReadProbes(text string) (map[string]Probe, error) {
	var out map[string]Probe
	if text == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, fmt.Errorf("read the application's probes: %w", err)
	}
	return out, nil
}

// Handler answers for the application.
type Handler struct {
	cfg    Config
	client http.Client // HTTP/1.1, and HTTP/2 over TLS
	grpc   http.Client // HTTP/2 in plain text
}

// New returns a Handler; Close lets go of what it holds.
func New(cfg Config) (*Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure the answers for the application: %w", err)
	}
	h := &Handler{cfg: cfg}
	transport := func() *http.Transport {
		return &http.Transport{
			DialContext: h.dial, DisableKeepAlives: true, DisableCompression: true,
			ForceAttemptHTTP2: true, // over TLS, where the application offers it
			// As the kubelet does: a probe asks whether the application lives, not who it is.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // G402: see above
		}
	}
	h.client = http.Client{Transport: transport(), CheckRedirect: sameHost}
	plain := transport()
	plain.Protocols = new(http.Protocols)
	plain.Protocols.SetUnencryptedHTTP2(true)
	h.grpc = http.Client{Transport: plain}
	return h, nil
}

// sameHost follows redirections as the kubelet does (RedirectChecker in its pkg/probe/http): those to another host,
// whatever the port, are a success by themselves, and too many a failure.
func sameHost(r *http.Request, via []*http.Request) error {
	if r.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= redirectsMax {
		return fmt.Errorf("it redirects more than %d times", redirectsMax-1)
	}
	return nil
}

// dial connects to the application as the proxy does for its inbound requests: from 127.0.0.6 or ::6, which the
// capture rules know, so that the connection does not come back to the proxy.
func (h *Handler) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 6)}}
	if h.host().Is6() {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP("::6")}
	}
	if h.cfg.Mark != 0 {
		d.Control = func(_, _ string, c syscall.RawConn) (err error) {
			controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(h.cfg.Mark)) })
			return errors.Join(controlErr, err)
		}
	}
	return d.DialContext(ctx, network, address)
}

// host is the application's address.
func (h *Handler) host() netip.Addr {
	if h.cfg.Address.IsValid() {
		return h.cfg.Address.Unmap()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (h *Handler) at(port uint16) string { return netip.AddrPortFrom(h.host(), port).String() }

// ServeHTTP answers a probe or a lifecycle handler. A failure is 500, as in Istio, with the reason for the events of the
// pod; the answers of an HTTP probe are passed on.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := h.cfg.Probes[r.URL.Path]
	if !ok {
		http.Error(w, "no such probe is known to the proxy", http.StatusNotFound)
		return
	}
	timeout := timeoutDefault
	if p.TimeoutSeconds > 0 {
		timeout = min(time.Duration(p.TimeoutSeconds)*time.Second, TimeoutMax)
	} else if strings.HasPrefix(r.URL.Path, lifecyclePrefix) {
		timeout = lifecycleTimeout
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	var err error
	switch {
	case p.HTTPGet != nil:
		if err = h.get(ctx, w, r, p.HTTPGet); err == nil {
			return
		}
	case p.TCPSocket != nil:
		err = h.connect(ctx, p.TCPSocket.Port)
	default:
		err = h.check(ctx, p.GRPC)
	}
	if err != nil {
		http.Error(w, "the application: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// get asks by HTTP and passes the answer on. An error means that nothing was written.
func (h *Handler) get(ctx context.Context, w http.ResponseWriter, from *http.Request, p *HTTPGet) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url(h.at(p.Port)), nil)
	if err != nil {
		return err
	}
	r.Header = p.header(from.UserAgent())
	r.Host = r.Header.Get("Host")
	answer, err := h.client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(answer.Body, bodyMax))
	if err != nil {
		return fmt.Errorf("read its answer: %w", err)
	}
	status := answer.StatusCode
	if status >= 300 && status < 400 {
		status = http.StatusOK // else the kubelet would follow it to the proxy
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
	return nil
}

// url is where the kubelet would ask (formatURL in its pkg/probe/http): the path may have a query, and counts as it is
// where it is none.
func (p *HTTPGet) url(at string) string {
	u, err := url.Parse(p.Path)
	if err != nil {
		u = &url.URL{Path: p.Path}
	}
	u.Scheme, u.Host = "http", at
	if strings.EqualFold(p.Scheme, "HTTPS") {
		u.Scheme = "https"
	}
	return u.String()
}

// header is what the kubelet would ask with: what the probe names, and its own User-Agent (such as kube-probe/1.36) and
// Accept where the probe names none. An empty Accept is left out.
func (p *HTTPGet) header(userAgent string) http.Header {
	header := http.Header{}
	for _, f := range p.HTTPHeaders {
		header.Add(f.Name, f.Value)
	}
	if _, ok := header["User-Agent"]; !ok {
		header.Set("User-Agent", userAgent)
	}
	if _, ok := header["Accept"]; !ok {
		header.Set("Accept", "*/*")
	} else if header.Get("Accept") == "" {
		header.Del("Accept")
	}
	return header
}

func (h *Handler) connect(ctx context.Context, port uint16) error {
	c, err := h.dial(ctx, "tcp", h.at(port))
	if err != nil {
		return err
	}
	return c.Close()
}

// number reads a port.
func number(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", text)
	}
	return uint16(n), nil
}
