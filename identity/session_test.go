package identity_test

import (
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

// resumption is a server and a client that have spoken once.
type resumption struct {
	old, young     *authority
	server, client *identity.Holder
	srvTLS, cliTLS *tls.Config
}

func newResumption(t *testing.T, version uint16) *resumption {
	t.Helper()
	r := &resumption{old: newAuthority(t, "old"), young: newAuthority(t, "young")}
	r.server, r.client = r.old.holder(r.old.bundle("td"), bob), r.old.holder(r.old.bundle("td"), alice)
	r.srvTLS, r.cliTLS = istioServer(r.server), toBob(r.client)
	r.cliTLS.MaxVersion = version
	r.expect(t, "first", false)
	r.expect(t, "second", true)
	return r
}

// expect connects and checks whether the session resumed, with the right names.
func (r *resumption) expect(t *testing.T, when string, resumed bool) {
	t.Helper()
	srv, cli := connect(t, r.srvTLS, r.cliTLS)
	if srv.err != nil || cli.err != nil {
		t.Fatalf("%s: server %v, client %v", when, srv.err, cli.err)
	}
	if srv.state.DidResume != resumed || cli.state.DidResume != resumed {
		t.Errorf("%s: resumed %t, want %t", when, srv.state.DidResume, resumed)
	}
	a, err := identity.PeerID(srv.state)
	if err != nil || a.String() != alice {
		t.Errorf("%s: the server sees %v, %v", when, a, err)
	}
	b, err := identity.PeerID(cli.state)
	if err != nil || b.String() != bob {
		t.Errorf("%s: the client sees %v, %v", when, b, err)
	}
}

func TestResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Run("server's bundle changes", func(t *testing.T) {
				r := newResumption(t, version)
				r.server.SetBundle(r.old.bundle("td", r.young))
				r.expect(t, "after the change", false)
				r.expect(t, "once more", true)
			})
			t.Run("client's bundle changes", func(t *testing.T) {
				r := newResumption(t, version)
				r.client.SetBundle(r.old.bundle("td", r.young))
				r.expect(t, "after the change", false)
				r.expect(t, "once more", true)
			})
			t.Run("client's certificate changes", func(t *testing.T) {
				r := newResumption(t, version)
				if err := r.client.Set(r.old.issue(workload(t, alice)), r.client.Current().Bundle); err != nil {
					t.Fatal(err)
				}
				r.expect(t, "after the change", false)
			})
			t.Run("server's certificate changes", func(t *testing.T) {
				r := newResumption(t, version)
				if err := r.server.Set(r.old.issue(workload(t, bob)), r.server.Current().Bundle); err != nil {
					t.Fatal(err)
				}
				r.expect(t, "after the change", true) // It still is whom the client verified, and is verified again.
			})
		})
	}
}

// TestLateTickets: what arrives on a connection that was made before a renewal is not used after it.
func TestLateTickets(t *testing.T) {
	for _, renewed := range []bool{false, true} {
		r := newResumption(t, tls.VersionTLS13)
		cfg := identity.ForConnection(r.cliTLS)
		if renewed {
			if err := r.client.Set(r.old.issue(workload(t, alice)), r.client.Current().Bundle); err != nil {
				t.Fatal(err)
			}
		}
		cfg.ClientSessionCache.Put("late", &tls.ClientSessionState{})
		if _, there := r.cliTLS.ClientSessionCache.Get("late"); there == renewed {
			t.Errorf("renewed: %v, remembered: %v", renewed, there)
		}
	}
	if cfg := (&tls.Config{}); identity.ForConnection(cfg) != cfg {
		t.Error("a configuration of another kind is not itself")
	}
}

// A client that keeps its session, as other proxies do, must not get in with it
// after its root has gone.
func TestResumptionDoesNotOutliveTheRoot(t *testing.T) {
	for _, tt := range []struct {
		version  uint16
		untagged bool // the ticket's tag is not looked at: verifying anew must do
	}{{tls.VersionTLS12, false}, {tls.VersionTLS12, true}, {tls.VersionTLS13, false}, {tls.VersionTLS13, true}} {
		old, young := newAuthority(t, "old"), newAuthority(t, "young")
		server := old.holder(old.bundle("td"), bob)
		srvTLS := istioServer(server)
		if tt.untagged {
			srvTLS.UnwrapSession = srvTLS.DecryptTicket
		}
		stubborn := &tls.Config{
			Certificates: []tls.Certificate{old.issue(workload(t, alice))}, ServerName: "x", InsecureSkipVerify: true,
			ClientSessionCache: tls.NewLRUClientSessionCache(1), MaxVersion: tt.version, NextProtos: []string{"istio"},
		}
		for _, resumed := range []bool{false, true} {
			if srv, cli := connect(t, srvTLS, stubborn); srv.err != nil || cli.err != nil || srv.state.DidResume != resumed {
				t.Fatalf("before: server %v, client %v, resumed %t", srv.err, cli.err, srv.state.DidResume)
			}
		}
		if err := server.Set(young.issue(workload(t, bob)), young.bundle("td")); err != nil {
			t.Fatal(err)
		}
		if srv, cli := connect(t, srvTLS, stubborn); !errors.Is(srv.err, identity.ErrNotTrusted) || cli.err == nil {
			t.Errorf("%s, untagged %t: a session outlives its root (server %v, client %v)", tls.VersionName(tt.version), tt.untagged, srv.err, cli.err)
		}
	}
}

// The verdict on a peer is given anew when a session resumes: an ID that is no
// longer accepted does not get back in by its session.
func TestResumptionAsksAgain(t *testing.T) {
	root := newAuthority(t, "root")
	server, client := root.holder(root.bundle("td"), bob), root.holder(root.bundle("td"), alice)
	accept := true
	srvTLS := istioServer(server)
	cliTLS := identity.ClientTLS(client, identity.ClientConfig{ServerName: "x", Accept: func(identity.ID) bool { return accept }})
	for range 2 {
		if _, cli := connect(t, srvTLS, cliTLS); cli.err != nil {
			t.Fatal(cli.err)
		}
	}
	accept = false
	if _, cli := connect(t, srvTLS, cliTLS); cli.err == nil {
		t.Error("a resumed session was not asked for its ID")
	}
}

// A short-lived certificate does not live on in a session either.
func TestResumptionEndsWithTheCertificate(t *testing.T) {
	root := newAuthority(t, "root")
	server := root.holder(root.bundle("td"), bob)
	srvTLS := istioServer(server)
	short := workload(t, alice)
	short.NotBefore, short.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	cert := root.issue(short)
	stubborn := &tls.Config{
		Certificates: []tls.Certificate{cert}, ServerName: "x", InsecureSkipVerify: true,
		ClientSessionCache: tls.NewLRUClientSessionCache(1), NextProtos: []string{"istio"},
	}
	for range 2 {
		if srv, _ := connect(t, srvTLS, stubborn); srv.err != nil {
			t.Fatal(srv.err)
		}
	}
	// The server's clock moves past the certificate's end. crypto/tls looks at
	// Config.Time for tickets; our own verification looks at the real one.
	srvTLS.Time = func() time.Time { return time.Now().Add(2 * time.Hour) }
	srv, _ := connect(t, srvTLS, stubborn)
	if srv.err == nil && srv.state.DidResume {
		t.Error("a session outlives the certificate it stands for")
	}
}

// A session is not resumed when the certificate that it stands for may end before the handshake does: the new one is
// asked for, by the client and by the server.
func TestResumptionKeepsAway(t *testing.T) {
	const life = time.Hour
	for _, tt := range []struct {
		short   string        // whose certificate ends
		left    time.Duration // of its life when the client comes back
		resumed bool
	}{{bob, time.Minute, true}, {bob, time.Second, false}, {alice, time.Minute, true}, {alice, time.Second, false}} {
		root := newAuthority(t, "root")
		short := workload(t, tt.short)
		short.NotBefore, short.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(life)
		server, client := root.holder(root.bundle("td"), bob), root.holder(root.bundle("td"), alice)
		srvTLS, cliTLS := istioServer(server), toBob(client)
		ends, judge := server, cliTLS
		if tt.short == alice {
			ends, judge = client, srvTLS
		}
		if err := ends.Set(root.issue(short), ends.Current().Bundle); err != nil {
			t.Fatal(err)
		}
		clock := judge.Time
		for _, resumed := range []bool{false, tt.resumed} {
			srv, cli := connect(t, srvTLS, cliTLS)
			if srv.err != nil || cli.err != nil {
				t.Fatalf("server %v, client %v", srv.err, cli.err)
			}
			if cli.state.DidResume != resumed {
				t.Errorf("%s before the end of %s: resumed %t, want %t", tt.left, tt.short, cli.state.DidResume, resumed)
			}
			judge.Time = func() time.Time { return clock().Add(life - tt.left) }
		}
	}
}
