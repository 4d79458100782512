package loop

import (
	"crypto/x509"
	"runtime"
	"testing"
	"time"
)

func TestPeersShareCertificates(t *testing.T) {
	var s certificates
	func() {
		one := &x509.Certificate{Raw: []byte("one")}
		if got := s.share(one); got != one {
			t.Error("the first of its kind is not kept")
		}
		if got := s.share(&x509.Certificate{Raw: []byte("one")}); got != one {
			t.Error("a second parsing of the same certificate is kept")
		}
		if got := s.share(&x509.Certificate{Raw: []byte("two")}); got == one {
			t.Error("another certificate is taken for the first")
		}
		runtime.KeepAlive(one)
	}()
	deadline := time.After(10 * time.Second)
	for n := -1; n != 0; { // cleanups run some time after a collection
		runtime.GC()
		s.mu.Lock()
		n = len(s.known)
		s.mu.Unlock()
		select {
		case <-deadline:
			t.Fatalf("%d entries outlive their certificates", n)
		default:
		}
	}
}
