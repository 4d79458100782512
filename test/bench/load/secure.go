package load

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// TLS is what a Job's connections show: mutual TLS as inside a mesh.
type TLS struct {
	Chain, Key []byte // PEM
	Protocols  []string
}

// secure is TLS between an owner and its connection. crypto/tls shakes hands on a blocking connection; afterwards its
// reads find what an event has brought, and beyond that an error that it takes for a passing one.
type secure struct {
	inner   owner
	conn    *conn
	session *tls.Conn
	dialed  net.Conn // while shaking hands
	in      []byte   // what has come and was not read
	buf     []byte   // the loop's
}

// errNothing says that nothing more has come yet.
type errNothing struct{}

func (errNothing) Error() string   { return "nothing has come yet" }
func (errNothing) Timeout() bool   { return true }
func (errNothing) Temporary() bool { return true }

// dialSecure connects, shakes hands, and then leaves the connection to the loop.
func (l *loop) dialSecure(to netip.AddrPort, config *tls.Config, o owner) error {
	dialed, err := net.DialTimeout("tcp", to.String(), patience)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", to, err)
	}
	if l.opened == nil {
		l.opened = make([]byte, scratchSize)
	}
	s := &secure{inner: o, dialed: dialed, buf: l.opened}
	s.session = tls.Client(s, config)
	if err := dialed.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := s.session.Handshake(); err != nil {
		return errors.Join(fmt.Errorf("shake hands with %s: %w", to, err), dialed.Close())
	}
	file, err := dialed.(*net.TCPConn).File() // a copy of the descriptor, which is ours
	if err = errors.Join(err, dialed.Close()); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err = errors.Join(err, file.Close(), unix.SetNonblock(fd, true)); err != nil {
		return fmt.Errorf("take the descriptor of a connection: %w", err)
	}
	c, err := l.add(fd, unix.EPOLLIN)
	if err != nil {
		return err
	}
	s.dialed, s.conn = nil, c
	c.owner, c.secure = s, s
	o.opened(c)
	return nil
}

func (*secure) opened(*conn) {}

func (s *secure) read(c *conn, p []byte) {
	s.in = p
	for c.fd >= 0 {
		n, err := s.session.Read(s.buf)
		if n > 0 {
			s.inner.read(c, s.buf[:n])
		}
		var nothing errNothing
		switch {
		case err == nil:
		case errors.As(err, &nothing):
			return
		default:
			c.end(err)
			return
		}
	}
}

func (s *secure) closed(c *conn, err error) { s.inner.closed(c, err) }

// The methods of net.Conn, for crypto/tls.

// Read gives what has come.
func (s *secure) Read(p []byte) (int, error) {
	if s.dialed != nil {
		return s.dialed.Read(p)
	}
	if len(s.in) == 0 {
		return 0, errNothing{}
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	return n, nil
}

// Write sends records.
func (s *secure) Write(p []byte) (int, error) {
	if s.dialed != nil {
		return s.dialed.Write(p)
	}
	if s.conn.fd < 0 {
		return 0, io.ErrClosedPipe
	}
	s.conn.sendOut(p)
	return len(p), nil
}

// Close does nothing: the loop closes.
func (*secure) Close() error { return nil }

// LocalAddr is not asked for.
func (*secure) LocalAddr() net.Addr { return nil }

// RemoteAddr is not asked for.
func (*secure) RemoteAddr() net.Addr { return nil }

// SetDeadline does nothing: nothing here waits.
func (*secure) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (*secure) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (*secure) SetWriteDeadline(time.Time) error { return nil }

// Config makes the configuration of the client side. Whose certificate the server shows is not looked at: it is the
// proxy's work that is measured.
func (t *TLS) Config() (*tls.Config, error) {
	pair, err := tls.X509KeyPair(t.Chain, t.Key)
	if err != nil {
		return nil, fmt.Errorf("read the generator's certificate: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: t.Protocols,
	}, nil
}
