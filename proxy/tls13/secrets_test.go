package tls13

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// certificate makes one for a server called "lateen.test".
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"lateen.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// shake has crypto/tls shake hands with itself and returns what both sides learned.
func shake(t *testing.T, serverTLS, clientTLS *tls.Config) (server, client Secrets, resumed bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	done := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, err = tls.Server(conn, server.Tap(serverTLS, true)).Write([]byte("x"))
		}
		done <- err
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	c := tls.Client(conn, client.Tap(clientTLS, false))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return server, client, c.ConnectionState().DidResume
}

func TestTap(t *testing.T) {
	cert := certificate(t)
	plain := &tls.Config{Certificates: []tls.Certificate{cert}}
	explicit := plain.Clone()
	explicit.SetSessionTicketKeys([][32]byte{{1, 2, 3}})
	for _, tt := range []struct {
		name   string
		server *tls.Config
		resume bool
	}{
		{"plain", plain, true},
		{"ticket keys of its own", explicit, true},
		{"no tickets", &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}, false},
		{"another config for the client", &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{cert}}, nil
		}}, true},
		{"no other config for the client", &tls.Config{
			Certificates:       []tls.Certificate{cert},
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil },
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clientTLS := &tls.Config{
				InsecureSkipVerify: true, ServerName: "lateen.test", // #nosec: the other end is this test
				ClientSessionCache: tls.NewLRUClientSessionCache(1),
			}
			for i := range 3 {
				server, client, resumed := shake(t, tt.server, clientTLS)
				if !server.Known() || !client.Known() || server.client != client.client || server.server != client.server {
					t.Error("the two sides did not learn the same secrets")
				}
				if want := tt.resume && i > 0; resumed != want {
					t.Errorf("handshake %d: resumed %v, want %v", i, resumed, want)
				}
			}
		})
	}
}

func TestTapErrors(t *testing.T) {
	refused := errors.New("refused")
	cfg := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, refused }}
	if _, err := new(Secrets).Tap(cfg, true).GetConfigForClient(nil); !errors.Is(err, refused) {
		t.Errorf("GetConfigForClient: %v, want %v", err, refused)
	}
}

// Who logs keys for a debugger goes on getting them.
func TestTapPassesKeyLogOn(t *testing.T) {
	cert := certificate(t)
	var inner, outer bytes.Buffer
	serverTLS := &tls.Config{KeyLogWriter: &outer, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{cert}, KeyLogWriter: &inner}, nil
	}}
	var mine bytes.Buffer
	shake(t, serverTLS, &tls.Config{InsecureSkipVerify: true, KeyLogWriter: &mine}) // #nosec: the other end is this test
	for name, log := range map[string]*bytes.Buffer{"server": &inner, "client": &mine} {
		if n := strings.Count(log.String(), "\n"); n != 4 {
			t.Errorf("%s: %d lines are logged, want 4", name, n)
		}
	}
	if outer.Len() > 0 {
		t.Error("the config that was not used logs keys")
	}
}

func TestSecretsIgnoreOtherLines(t *testing.T) {
	var s Secrets
	for _, line := range []string{
		"", "\n", "CLIENT_TRAFFIC_SECRET_0", "CLIENT_TRAFFIC_SECRET_0 00\n", "CLIENT_TRAFFIC_SECRET_0 00 zz\n",
		"SERVER_TRAFFIC_SECRET_0 00 " + strings.Repeat("00", secretBytesMax+1) + "\n", "CLIENT_RANDOM 00 0011\n",
	} {
		if n, err := s.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("Write %q: %d, %v", line, n, err)
		}
	}
	if s.Known() || s.client.n != 0 || s.server.n != 0 {
		t.Error("secrets were learned from nothing")
	}
}
