// Package hello reads what a TLS ClientHello says before anybody answers it:
// the server name and the application protocols. A proxy routes by them and
// tells the mesh's own TLS from an application's.
//
// In: the first bytes of a connection. Out: Info, or that more bytes are
// needed, or that this is not TLS. It keeps no state, decides nothing, and may
// be called from any goroutine. Formats: RFC 8446 sections 4.1.2 and 5.1,
// RFC 6066 section 3, RFC 7301 section 3.1.
package hello

import "errors"

// MaxBytes bounds how much of a ClientHello is waited for; larger ones are not TLS for us.
const MaxBytes = 32 << 10

// Info is what a ClientHello says. Its slices point into the bytes that were parsed, or into Buf.
type Info struct {
	ServerName []byte
	// ALPN holds the offered protocols in order, each with its length before it, as on the wire.
	ALPN []byte
	// Buf holds the handshake message when it was spread over several records.
	Buf []byte
}

// Offers reports whether the protocol is among those offered.
func (i *Info) Offers(protocol string) bool {
	for p := i.ALPN; len(p) > 0; {
		n := int(p[0])
		if len(p) < 1+n {
			return false
		}
		if string(p[1:1+n]) == protocol {
			return true
		}
		p = p[1+n:]
	}
	return false
}

// The outcomes of Parse other than success.
var (
	// ErrMore: a ClientHello so far, but not all of it.
	ErrMore = errors.New("more bytes are needed")
	// ErrNot: this is not a TLS ClientHello.
	ErrNot = errors.New("not a TLS ClientHello")
)

const (
	recordHandshake   = 22
	messageHello      = 1
	extensionName     = 0
	extensionALPN     = 16
	recordHeaderBytes = 5
)

// Parse reads the ClientHello at the start of p into info.
func Parse(p []byte, info *Info) error {
	info.ServerName, info.ALPN = nil, nil
	message, err := join(p, info)
	if err != nil {
		return err
	}
	r := reader{p: message[4:]}
	r.skip(2 + 32)  // legacy_version, random
	r.skip(r.u8())  // legacy_session_id
	r.skip(r.u16()) // cipher_suites
	r.skip(r.u8())  // legacy_compression_methods
	if !r.bad && len(r.p) == 0 {
		return nil // no extensions: allowed before TLS 1.3
	}
	extensions := reader{p: r.take(r.u16())}
	if r.bad {
		return ErrNot
	}
	for len(extensions.p) > 0 {
		kind := extensions.u16()
		body := extensions.take(extensions.u16())
		if extensions.bad {
			return ErrNot
		}
		switch kind {
		case extensionName:
			info.ServerName = serverName(body)
		case extensionALPN:
			list := reader{p: body}
			if info.ALPN = list.take(list.u16()); list.bad {
				return ErrNot
			}
		}
	}
	return nil
}

// join returns the whole handshake message with its 4-byte header, gathered over records if need be.
func join(p []byte, info *Info) ([]byte, error) {
	want, got := -1, info.Buf[:0]
	for rest := p; ; {
		if err := checkRecord(rest); err != nil {
			return nil, err
		}
		if len(rest) < recordHeaderBytes {
			return nil, more(p)
		}
		n := int(rest[3])<<8 | int(rest[4])
		if n == 0 || n > 1<<14 {
			return nil, ErrNot
		}
		body := rest[recordHeaderBytes:min(len(rest), recordHeaderBytes+n)]
		if want < 0 && len(got) == 0 && len(body) >= 4 {
			if body[0] != messageHello {
				return nil, ErrNot
			}
			want = 4 + (int(body[1])<<16 | int(body[2])<<8 | int(body[3]))
			if want > MaxBytes {
				return nil, ErrNot
			}
			if len(body) >= want { // the usual case: one record, nothing copied
				return body[:want], nil
			}
		}
		if len(body) < n {
			return nil, more(p)
		}
		got = append(got, body...)
		info.Buf = got
		if want < 0 && len(got) >= 4 {
			if got[0] != messageHello {
				return nil, ErrNot
			}
			want = 4 + (int(got[1])<<16 | int(got[2])<<8 | int(got[3]))
			if want > MaxBytes {
				return nil, ErrNot
			}
		}
		if want >= 0 && len(got) >= want {
			return got[:want], nil
		}
		rest = rest[recordHeaderBytes+n:]
	}
}

func more(p []byte) error {
	if len(p) >= MaxBytes {
		return ErrNot
	}
	return ErrMore
}

// checkRecord refuses, from the very first byte, what cannot be the header of a handshake record.
func checkRecord(p []byte) error {
	if len(p) > 0 && p[0] != recordHandshake || len(p) > 1 && p[1] != 3 || len(p) > 2 && p[2] > 4 {
		return ErrNot
	}
	return nil
}

func serverName(p []byte) []byte {
	list := reader{p: p}
	list = reader{p: list.take(list.u16())}
	for len(list.p) > 0 && !list.bad {
		kind := list.u8()
		name := list.take(list.u16())
		if kind == 0 && !list.bad {
			return name
		}
	}
	return nil
}

// reader reads from the front of p; after a read past its end it is bad and returns zeros.
type reader struct {
	p   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.p) {
		r.bad, r.p = true, nil
		return nil
	}
	out := r.p[:n]
	r.p = r.p[n:]
	return out
}

func (r *reader) skip(n int) { r.take(n) }

func (r *reader) u8() int {
	if b := r.take(1); b != nil {
		return int(b[0])
	}
	return 0
}

func (r *reader) u16() int {
	if b := r.take(2); b != nil {
		return int(b[0])<<8 | int(b[1])
	}
	return 0
}
