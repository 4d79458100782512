package hello

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"testing"
)

// clientHello returns the first flight of a real client.
func clientHello(tb testing.TB, cfg *tls.Config) []byte {
	tb.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, cfg).Handshake()
		client.Close()
	}()
	var out []byte
	buf := make([]byte, 64<<10)
	var info Info
	for {
		n, err := server.Read(buf)
		out = append(out, buf[:n]...)
		if !errors.Is(Parse(out, &info), ErrMore) {
			return out
		}
		if err != nil {
			tb.Fatalf("the client's hello ended early: %v", err)
		}
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		cfg  *tls.Config
		sni  string
		alpn []string
	}{
		{"name and protocols", &tls.Config{ServerName: "reviews.example.com", NextProtos: []string{"istio-http/1.1", "istio"}}, "reviews.example.com", []string{"istio-http/1.1", "istio"}},
		{"no protocols", &tls.Config{ServerName: "a.example"}, "a.example", nil},
		{"no name", &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}, "", []string{"h2"}},
		{"TLS 1.2 only", &tls.Config{ServerName: "b.example", MaxVersion: tls.VersionTLS12}, "b.example", nil},
		{"post-quantum share", &tls.Config{ServerName: "c.example", CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}}, "c.example", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			whole := clientHello(t, tt.cfg)
			check := func(p []byte) {
				t.Helper()
				var info Info
				if err := Parse(p, &info); err != nil {
					t.Fatalf("Parse: %v", err)
				}
				if got := string(info.ServerName); got != tt.sni {
					t.Errorf("server name %q, want %q", got, tt.sni)
				}
				for _, proto := range []string{"istio-http/1.1", "istio", "h2", "http/1.1"} {
					if got, want := info.Offers(proto), slices.Contains(tt.alpn, proto); got != want {
						t.Errorf("Offers(%q) = %v, want %v", proto, got, want)
					}
				}
			}
			check(whole)
			check(append(slices.Clone(whole), "what follows is not looked at"...))
			for _, size := range []int{1, 3, 100} {
				check(inRecords(whole, size))
			}
			for n := range whole {
				var info Info
				if err := Parse(whole[:n], &info); !errors.Is(err, ErrMore) {
					t.Fatalf("first %d bytes: %v, want ErrMore", n, err)
				}
			}
		})
	}
}

// inRecords spreads a one-record hello over records of size bytes.
func inRecords(hello []byte, size int) []byte {
	var out []byte
	for part := range slices.Chunk(hello[recordHeaderBytes:], size) {
		out = append(append(out, 22, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
	}
	return out
}

func TestParseNot(t *testing.T) {
	whole := clientHello(t, &tls.Config{ServerName: "x.example"})
	serverHello := bytes.Clone(whole)
	serverHello[5] = 2
	tooLong := bytes.Clone(whole)
	tooLong[6] = 0xff
	cut := bytes.Clone(whole)
	cut[5+4+34] = 255 // the session id's length
	for name, p := range map[string][]byte{
		"HTTP": []byte("GET / HTTP/1.1\r\n"), "one byte": {'G'}, "alert": {21, 3, 3, 0, 2, 1, 0}, "SSL 2": {22, 2, 0},
		"empty record": {22, 3, 1, 0, 0}, "other message": serverHello, "too long": tooLong, "lengths that lie": cut,
	} {
		var info Info
		if err := Parse(p, &info); !errors.Is(err, ErrNot) {
			t.Errorf("%s: %v, want ErrNot", name, err)
		}
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	whole := clientHello(t, &tls.Config{ServerName: "x.example", NextProtos: []string{"istio"}})
	var info Info
	if n := testing.AllocsPerRun(100, func() {
		if err := Parse(whole, &info); err != nil || !info.Offers("istio") {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func FuzzParse(f *testing.F) {
	whole := clientHello(f, &tls.Config{ServerName: "x.example", NextProtos: []string{"istio", "h2"}})
	f.Add(whole)
	f.Add(inRecords(whole, 7))
	f.Fuzz(func(t *testing.T, p []byte) {
		var info Info
		err := Parse(p, &info)
		if err != nil && !errors.Is(err, ErrMore) && !errors.Is(err, ErrNot) {
			t.Fatalf("unknown error %v", err)
		}
		if errors.Is(err, ErrMore) && len(p) >= MaxBytes {
			t.Fatal("asks for more than it would ever accept")
		}
		info.Offers("istio")
	})
}
