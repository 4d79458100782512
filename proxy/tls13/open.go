package tls13

import (
	"crypto/tls"
	"fmt"
	"io"
)

// Open decrypts the records at the front of src, as many as are complete, into
// dst, one behind the other: n bytes of application data from used bytes. dst
// and src must not overlap. dst should be as long as src; what has no room waits
// for the next call. The rest of src must be given again, with more behind it.
// n and used are valid also if err is not nil: io.EOF is the peer's
// close_notify; an *Error is what AppendClose answers; else err wraps the
// tls.AlertError with which the peer broke off. The error stays.
func (s *Session) Open(dst, src []byte) (n, used int, err error) {
	for s.end == nil {
		size, refused := recordSize(src[used:])
		if refused != nil {
			s.refuse(refused)
			break
		}
		if size == 0 || size > len(src)-used || size-HeaderBytes-tagBytes > len(dst)-n {
			return n, used, nil
		}
		got, refused := s.openRecord(dst[n:], src[used:used+size])
		if refused != nil {
			s.refuse(refused)
			break
		}
		n += got
		used += size
	}
	return n, used, s.end
}

// refuse notes what AppendClose is to say.
func (s *Session) refuse(e *Error) { s.end, s.alert = e, e.Alert }

// recordSize is the length of the record that p begins with; 0 if p is too short to tell. What no record of ours can
// begin with is refused at once.
func recordSize(p []byte) (int, *Error) {
	if len(p) > 0 && p[0] != typeData {
		if p[0] == typeChangeCipherSpec {
			return 0, &Error{alertUnexpectedMessage, "change_cipher_spec after the handshake"}
		}
		return 0, &Error{alertUnexpectedMessage, fmt.Sprintf("unprotected record of type %d after the handshake", p[0])}
	}
	if len(p) < HeaderBytes {
		return 0, nil
	}
	size := int(p[3])<<8 | int(p[4])
	if size > sealedBytesMax {
		return 0, &Error{alertRecordOverflow, fmt.Sprintf("record of %d bytes, %d are allowed", size, sealedBytesMax)}
	}
	return HeaderBytes + size, nil
}

// openRecord decrypts one record into dst and acts on it. It returns how many bytes of application data it put there.
func (s *Session) openRecord(dst, record []byte) (int, *Error) {
	inner, err := s.in.open(dst[:0], record)
	if err != nil {
		return 0, &Error{alertBadRecordMAC, "record does not authenticate"}
	}
	if len(inner) > ContentBytesMax+1 {
		return 0, &Error{alertRecordOverflow, fmt.Sprintf("record holds %d bytes, %d are allowed", len(inner), ContentBytesMax+1)}
	}
	last := len(inner) - 1
	for last >= 0 && inner[last] == 0 { // padding (section 5.4)
		last--
	}
	if last < 0 {
		return 0, &Error{alertUnexpectedMessage, "record has no content type"}
	}
	kind, content := inner[last], inner[:last]
	if kind == typeData && last > 0 {
		s.useless, s.ticket = 0, nil
	} else if s.useless++; s.useless > uselessMax {
		return 0, &Error{alertUnexpectedMessage, fmt.Sprintf("more than %d records in a row without data", uselessMax)}
	}
	if len(s.message) > 0 && kind != typeHandshake {
		return 0, &Error{alertUnexpectedMessage, "record between the parts of a handshake message"}
	}
	switch kind {
	case typeData:
		return len(content), nil
	case typeAlert:
		return 0, s.hear(content)
	case typeHandshake:
		refused := s.follow(content)
		if refused == nil && s.ticket != nil {
			s.ticket(record)
		}
		return 0, refused
	}
	return 0, &Error{alertUnexpectedMessage, fmt.Sprintf("protected record of type %d", kind)}
}

// hear acts on an alert. Its level means nothing in TLS 1.3 (section 6).
func (s *Session) hear(alert []byte) *Error {
	if len(alert) == 0 {
		return &Error{alertUnexpectedMessage, "empty alert"}
	}
	if len(alert) != 2 {
		return &Error{alertDecodeError, fmt.Sprintf("alert of %d bytes", len(alert))}
	}
	switch code := tls.AlertError(alert[1]); code {
	case alertCloseNotify:
		s.end = io.EOF
	case alertUserCanceled: // close_notify follows (section 6.1)
	default:
		s.silent = true
		s.end = fmt.Errorf("the peer broke off: %w", code)
	}
	return nil
}

// follow acts on handshake messages. One may come in parts, over several records.
func (s *Session) follow(p []byte) *Error {
	if len(p) == 0 {
		return &Error{alertUnexpectedMessage, "empty handshake record"}
	}
	if len(s.message) > 0 {
		p = append(s.message, p...)
		s.message = nil
	}
	for len(p) > 0 {
		kind := p[0]
		if kind != messageKeyUpdate && (kind != messageTicket || !s.client) {
			return &Error{alertUnexpectedMessage, fmt.Sprintf("handshake message of type %d after the handshake", kind)}
		}
		size := 4
		if len(p) >= size {
			size += int(p[1])<<16 | int(p[2])<<8 | int(p[3])
			if kind == messageKeyUpdate && size != 5 {
				return &Error{alertDecodeError, fmt.Sprintf("KeyUpdate of %d bytes", size)}
			}
			if size > messageBytesMax {
				return &Error{alertIllegalParameter, fmt.Sprintf("handshake message of %d bytes, %d are taken", size, messageBytesMax)}
			}
		}
		if len(p) < size {
			s.message = append([]byte(nil), p...)
			return nil
		}
		message := p[4:size]
		p = p[size:]
		if kind == messageTicket {
			if !validTicket(message) {
				return &Error{alertDecodeError, "malformed NewSessionTicket"}
			}
			continue
		}
		if len(p) > 0 {
			return &Error{alertUnexpectedMessage, "handshake message under the old key behind a KeyUpdate"}
		}
		if refused := s.changeKeys(message[0]); refused != nil {
			return refused
		}
	}
	return nil
}

// changeKeys acts on a KeyUpdate (section 4.6.3).
func (s *Session) changeKeys(request byte) *Error {
	s.ticket = nil // crypto/tls, which is given the tickets, does not see this and could read no more
	switch request {
	case 0:
	case 1:
		s.owed = true
	default:
		return &Error{alertIllegalParameter, fmt.Sprintf("KeyUpdate with request %d", request)}
	}
	if err := s.in.update(); err != nil {
		return &Error{alertInternalError, err.Error()}
	}
	return nil
}

// validTicket reports whether p is a NewSessionTicket (section 4.6.1): lifetime and age_add of 4 bytes each, a nonce
// with a length of 1 byte, a ticket of at least a byte and extensions with lengths of 2 bytes each. Extensions mean
// nothing without early data, so that their framing alone is looked at.
func validTicket(p []byte) bool {
	if len(p) < 8 {
		return false
	}
	_, p, ok := vector(p[8:], 1)
	if !ok {
		return false
	}
	ticket, p, ok := vector(p, 2)
	if !ok || len(ticket) == 0 {
		return false
	}
	extensions, p, ok := vector(p, 2)
	if !ok || len(p) > 0 {
		return false
	}
	for len(extensions) > 0 {
		if len(extensions) < 2 {
			return false
		}
		if _, extensions, ok = vector(extensions[2:], 2); !ok {
			return false
		}
	}
	return true
}

// vector takes what a length of lengthBytes stands before.
func vector(p []byte, lengthBytes int) (value, rest []byte, ok bool) {
	if len(p) < lengthBytes {
		return nil, nil, false
	}
	n := 0
	for _, b := range p[:lengthBytes] {
		n = n<<8 | int(b)
	}
	p = p[lengthBytes:]
	if len(p) < n {
		return nil, nil, false
	}
	return p[:n], p[n:], true
}
