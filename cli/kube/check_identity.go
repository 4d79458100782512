package kube

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	core "k8s.io/api/core/v1"
)

// day is how certificates' lives are counted.
const day = 24 * time.Hour

// identityChecks judge the certificate authority.
func identityChecks() group {
	const replace = "replace it in time: docs/install.md says where the authority's key is; proxies have to learn a new root before it is used"
	return group{"identity", []check{
		{name: "the mesh's roots are good now, and for --cert-days more", judge: rootsGood, next: replace},
		{
			name: "lateend's certificates are of these roots", judge: servedByRoots,
			next: "restart what has the older root: `kubectl rollout restart -n istio-system deploy/lateend`, then the workloads",
		},
		{name: "what issues certificates is good now, and for --cert-days more", judge: issuerGood, next: replace},
		{
			name: "lateend's clock agrees with the API server's", judge: controlClock,
			next: "have the nodes of the pods that are named synchronise their clocks (NTP)",
		},
	}}
}

// certificates reads PEM; what is none is left out.
func certificates(text []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// fingerprints are a set of certificates.
func fingerprints(list []*x509.Certificate) map[[sha256.Size]byte]bool {
	out := map[[sha256.Size]byte]bool{}
	for _, c := range list {
		out[sha256.Sum256(c.Raw)] = true
	}
	return out
}

// lifetimes judges how long certificates are still good.
func (l *look) lifetimes(list []*x509.Certificate) verdict {
	v := ok()
	now := l.now()
	for _, c := range list {
		left := c.NotAfter.Sub(now)
		until := c.NotAfter.UTC().Format(time.DateOnly)
		switch {
		case left <= 0:
			v.level = failed
			v.why = append(v.why, fmt.Sprintf("%s has ended on %s", c.Subject, until))
		case now.Before(c.NotBefore):
			v.level = failed
			v.why = append(v.why, fmt.Sprintf("%s begins only at %s", c.Subject, c.NotBefore.UTC().Format(time.RFC3339)))
		case left < time.Duration(l.certDays)*day:
			if v.level == passed {
				v.level = warned
			}
			v.why = append(v.why, fmt.Sprintf("%s ends in %d days, on %s", c.Subject, int(left/day), until))
		}
	}
	return v
}

func rootsGood(ctx context.Context, l *look) verdict {
	text, err := l.roots(ctx)
	if err != nil {
		return trouble(err)
	}
	list := certificates([]byte(text))
	if len(list) == 0 {
		return verdict{failed, []string{"the ConfigMap " + rootsName + " has no certificate in " + rootsKey}}
	}
	return l.lifetimes(list)
}

// shown is what the control plane showed as its certificate, by pod.
type shown struct {
	pod   string
	chain []*x509.Certificate
}

// shown asks every lateend that is ready for its certificate, as the API server does when it calls the webhook.
func (l *look) shown(ctx context.Context) ([]shown, error) {
	return once(l, "certificates of lateend", func() ([]shown, error) {
		pods, err := l.controlPods(ctx)
		if err != nil {
			return nil, err
		}
		var out []shown
		for _, p := range pods {
			if !podReady(&p) {
				continue
			}
			chain, err := l.dial.chain(ctx, &p, portWebhook)
			if err != nil {
				return nil, err
			}
			out = append(out, shown{p.Name, chain})
		}
		return out, nil
	})
}

// chain shakes hands with a port of a pod, and returns what it shows, judged by nobody yet.
func (d dialer) chain(ctx context.Context, p *core.Pod, port int) ([]*x509.Certificate, error) {
	ctx, stop := context.WithTimeout(ctx, pageTimeout)
	defer stop()
	conn, err := d(ctx, p.Namespace, p.Name, port)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	// The certificate is what is to be judged: servedByRoots verifies it.
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // see above
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("shake hands with port %d of pod %s/%s: %w", port, p.Namespace, p.Name, err)
	}
	return secure.ConnectionState().PeerCertificates, nil
}

// verified leads from what a lateend showed to a root.
func verified(s shown, roots string, now time.Time) ([]*x509.Certificate, error) {
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now}
	for _, c := range certificates([]byte(roots)) {
		o.Roots.AddCert(c)
	}
	for _, c := range s.chain[min(1, len(s.chain)):] {
		o.Intermediates.AddCert(c)
	}
	if len(s.chain) == 0 {
		return nil, fmt.Errorf("pod %s shows no certificate", s.pod)
	}
	chains, err := s.chain[0].Verify(o)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", s.pod, err)
	}
	return chains[0], nil
}

func servedByRoots(ctx context.Context, l *look) verdict {
	roots, err := l.roots(ctx)
	if err != nil {
		return trouble(err)
	}
	list, err := l.shown(ctx)
	if v, may := askableCertificates(list, err); !may {
		return v
	}
	var why []string
	for _, s := range list {
		if _, err := verified(s, roots, l.now()); err != nil {
			why = append(why, err.Error())
		}
	}
	return unless(failed, why)
}

func askableCertificates(list []shown, err error) (verdict, bool) {
	states := make([]controlState, len(list))
	return askable(states, err)
}

func issuerGood(ctx context.Context, l *look) verdict {
	roots, err := l.roots(ctx)
	if err != nil {
		return trouble(err)
	}
	list, err := l.shown(ctx)
	if v, may := askableCertificates(list, err); !may {
		return v
	}
	var issuers []*x509.Certificate
	for _, s := range list {
		chain, err := verified(s, roots, l.now())
		if err != nil {
			return skip(err.Error())
		}
		for _, c := range chain[1:] {
			if !slices.ContainsFunc(issuers, c.Equal) {
				issuers = append(issuers, c)
			}
		}
	}
	return l.lifetimes(issuers)
}

func controlClock(ctx context.Context, l *look) verdict {
	list, err := l.states(ctx)
	if v, may := askable(list, err); !may {
		return v
	}
	server, err := l.date(ctx)
	if err != nil {
		return skip(err.Error())
	}
	var why []string
	for _, s := range list {
		// It was asked a moment ago: what is in between only makes it seem behind, by less than a check may take.
		if d := s.at.Sub(server); !s.at.IsZero() && (d > skewMax || d < -skewMax-checkTimeout) {
			why = append(why, fmt.Sprintf("pod %s is %s the API server", s.pod, apart(d)))
		}
	}
	return unless(warned, why)
}
