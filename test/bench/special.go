package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/test/bench/load"
)

const (
	// soon is the time between two looks at something that is timed.
	soon = time.Millisecond
	// changes is how often the configuration is changed.
	changes = 20
	// used is how many services of a large mesh are used.
	used = 20
	// settleTime is how long a proxy is left alone before its memory counts.
	settleTime = 8 * time.Second
	// applyAtOnce is how many services are applied together.
	applyAtOnce = 2500
)

// addTimed starts a peer and notes how long it took to its first answer.
func (s *stage) addTimed(ctx context.Context, p *peer) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	first := make(chan time.Time, 1)
	go func() {
		d := dialer{to: p.ports[0].String()}
		if d.until(ctx, func(n int) bool { return n > 0 }) == nil {
			first <- time.Now()
		}
	}()
	if err := s.add(ctx, p); err != nil {
		return err
	}
	began := p.began
	if obeys(p.name) {
		text, err := os.ReadFile(filepath.Join(s.dir, wrapper(p.name)+begunSuffix))
		if err != nil {
			return err
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return fmt.Errorf("read when %s began: %w", p.name, err)
		}
		began = time.Unix(0, ns)
	}
	select {
	case at := <-first:
		p.ready = at.Sub(began)
	case <-ctx.Done():
		return fmt.Errorf("no answer: %w", ctx.Err())
	}
	return nil
}

// until asks until an answer's length pleases.
func (d dialer) until(ctx context.Context, pleases func(n int) bool) error {
	c := d.client(false)
	defer c.CloseIdleConnections()
	tick := time.NewTicker(soon)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.to+"/bench", nil)
		if err != nil {
			return err
		}
		req.Host = load.Host
		if res, err := c.Do(req); err == nil {
			n, err := io.Copy(io.Discard, res.Body)
			if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode == http.StatusOK && pleases(int(n)) {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// measureStart tells how long the peer took.
func (*stage) measureStart(_ context.Context, p *peer) (sample, error) {
	return sample{Result: load.Result{P50: p.ready}}, nil
}

// measureConfig moves a service from one endpoint to another, again and again.
func (s *stage) measureConfig(ctx context.Context, p *peer) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d := dialer{to: p.ports[0].String()}
	var all []time.Duration
	for i := range changes {
		routes := slices.Clone(s.routes)
		size := page
		if i%2 == 0 {
			routes[0].Service, size = routes[1].Service, 2*page
		}
		text, err := fill("mesh.yaml", s.data(routes, nil))
		if err != nil {
			return sample{}, err
		}
		began := time.Now()
		if err := s.world.Apply(ctx, text); err != nil {
			return sample{}, err
		}
		if err := d.until(ctx, func(n int) bool { return n == size }); err != nil {
			return sample{}, fmt.Errorf("change %d is not obeyed: %w", i, err)
		}
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	return sample{Result: load.Result{P50: all[len(all)/2], P99: all[len(all)-1]}}, nil
}

// largeAddress is the virtual address of a service of a large mesh.
func largeAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 16, byte(i / 250), byte(1 + i%250)})
}

// startLarge starts sidecars in a mesh of many services, all with the same endpoints.
func (s *stage) startLarge(ctx context.Context, sc *scenario, names []string) error {
	server, err := s.network.Join(serverAddress(0))
	if err != nil {
		return err
	}
	var list []load.Service
	for i, v := range sc.services {
		v.Address = netip.AddrPortFrom(serverAddress(0), uint16(appPort+i))
		list = append(list, v.Service)
		s.routes = append(s.routes, route{Service: appPort + i})
	}
	if _, err := s.serve(server, list); err != nil {
		return err
	}
	s.large = sc.variants[0].services
	for first := 0; first < s.large; first += applyAtOnce {
		var some []meshPeer
		for i := first; i < min(first+applyAtOnce, s.large); i++ {
			some = append(some, meshPeer{"service-" + strconv.Itoa(i), largeAddress(i)})
		}
		data := map[string]any{"Peers": some, "Server": serverAddress(0), "Used": used, "First": first == 0}
		if first == 0 {
			err = s.control(ctx, "services.yaml", data)
		} else if text, fault := fill("services.yaml", s.data(s.routes, data)); fault == nil {
			err = s.world.Apply(ctx, text)
		} else {
			err = fault
		}
		if err != nil {
			return err
		}
	}
	for i, name := range names {
		p := &peer{name: name}
		if p.place, err = s.network.Join(clientAddress(i)); err != nil {
			return err
		}
		for j := range sc.services {
			p.ports = append(p.ports, netip.AddrPortFrom(largeAddress(j), meshPort))
		}
		if err := s.admit(ctx, p, sc, s.sidecar(ctx, p, p.place, "client-"+name, clientAddress(i), nil, nil)); err != nil {
			return err
		}
	}
	return nil
}

// measureUse uses some services, leaves the proxy alone, and uses them again.
func (s *stage) measureUse(ctx context.Context, p *peer) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for round := range 2 { // what a proxy has let go meanwhile, and needs, it has again
		for i := range min(used, s.large) {
			d := dialer{from: p.place, to: netip.AddrPortFrom(largeAddress(i), meshPort).String()}
			if err := d.until(ctx, func(n int) bool { return n == page }); err != nil {
				return sample{}, fmt.Errorf("use service %d: %w", i, err)
			}
		}
		if round > 0 {
			break
		}
		if err := settle(ctx); err != nil {
			return sample{}, err
		}
	}
	return sample{}, nil
}

// settle leaves a proxy alone.
func settle(ctx context.Context) error {
	select {
	case <-time.After(settleTime):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
