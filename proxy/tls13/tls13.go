// Package tls13 is the record layer of TLS 1.3 for after the handshake, which
// crypto/tls makes: many records per call, no buffers of its own, and nothing
// allocated per record.
//
// In: the traffic secrets that the handshake agreed on, as Secrets takes them
// from crypto/tls, and records of the peer. Out: application data, records to
// be sent, and, for crypto/tls to remember, session tickets. It must not know
// sockets, loops or what the data means. A Session belongs to one goroutine at
// a time. The specification is RFC 8446, whose sections the comments name.
package tls13

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
)

const (
	// HeaderBytes is the length of a record's header (section 5.1).
	HeaderBytes = 5
	// TrailerBytes is what stands behind a record's content: its type, and the authentication tag.
	TrailerBytes = 1 + tagBytes
	// ContentBytesMax is the longest content of a record (section 5.1).
	ContentBytesMax = 1 << 14
	// RecordBytesMax is the longest record, with its header (section 5.2).
	RecordBytesMax = HeaderBytes + sealedBytesMax

	sealedBytesMax = ContentBytesMax + 256
	// controlRecordBytes is the length of a record that holds an alert or a KeyUpdate, at the most.
	controlRecordBytes = HeaderBytes + 5 + TrailerBytes
	// uselessMax bounds the records in a row that carry nothing forward, in either direction: empty ones, tickets,
	// KeyUpdates and ignored alerts.
	uselessMax = 32
	// messageBytesMax is the longest handshake message that is taken: a ticket that holds a chain of certificates.
	messageBytesMax = 64 << 10
)

// Content types (section 5.1, appendix B.1).
const (
	typeChangeCipherSpec = 20
	typeAlert            = 21
	typeHandshake        = 22
	typeData             = 23
)

// Handshake messages that come after the handshake (section 4.6, appendix B.3).
const (
	messageTicket    = 4
	messageKeyUpdate = 24
)

// Alerts (section 6, appendix B.2).
const (
	alertCloseNotify       = 0
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22
	alertIllegalParameter  = 47
	alertDecodeError       = 50
	alertInternalError     = 80
	alertUserCanceled      = 90

	levelWarning = 1
	levelFatal   = 2
)

// Config says what a handshake has come to.
type Config struct {
	// Suite is the cipher suite, as crypto/tls numbers it; see Supports.
	Suite uint16
	// Client says which side we are.
	Client bool
	// Secrets holds the secrets. New clears it.
	Secrets *Secrets
	// Sent is what our side has written since Secrets.Known, in whole records. Some of it may already be protected by
	// the application's keys: the tickets that a server of crypto/tls sends before its handshake is done.
	Sent []byte
	// Ticket is called by Open with the whole records, still encrypted, that bring a client session tickets, until
	// something else comes. It may be nil.
	Ticket func(record []byte)
}

// Supports reports whether the cipher suite is one that a Session can go on with.
func Supports(suite uint16) bool {
	_, ok := suiteOf(suite)
	return ok
}

// Session is both directions of a connection after its handshake.
type Session struct {
	in, out direction
	client  bool
	ticket  func(record []byte)
	message []byte         // the beginning of a handshake message whose rest is to come
	useless int            // records since the last that carried something
	owed    bool           // a KeyUpdate, because the peer asked for one
	silent  bool           // we have sent close_notify or a fatal alert, or the peer does not want to hear it
	alert   tls.AlertError // what Close says
	end     error          // what Open has come to
}

// New makes a session that goes on where the handshake ended.
func New(c Config) (*Session, error) {
	defer c.Secrets.Clear()
	read, write := &c.Secrets.client, &c.Secrets.server
	if c.Client {
		read, write = write, read
	}
	s := &Session{client: c.Client, ticket: c.Ticket}
	for _, d := range []struct {
		*direction
		from *secret
	}{{&s.in, read}, {&s.out, write}} {
		if d.from.n == 0 {
			return nil, errors.New("crypto/tls has not told the traffic secrets")
		}
		d.suite = c.Suite
		if err := d.start(append([]byte(nil), d.from.bytes()...)); err != nil {
			return nil, err
		}
	}
	s.out.skip(c.Sent)
	return s, nil
}

// skip counts the records of sent that d itself has protected: those that it can open.
func (d *direction) skip(sent []byte) {
	var scratch []byte
	for len(sent) >= HeaderBytes {
		size := HeaderBytes + int(sent[3])<<8 + int(sent[4])
		if size > len(sent) {
			return
		}
		if sent[0] == typeData {
			if p, err := d.open(scratch[:0], sent[:size]); err == nil {
				scratch = p
			}
		}
		sent = sent[size:]
	}
}

// Error is what the peer did wrong. It unwraps to the alert that Close tells the peer.
type Error struct {
	Alert tls.AlertError
	// Reason says what was wrong; it holds nothing of what the peer sent.
	Reason string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("tls record: %s (%v)", e.Reason, e.Alert) }

// Unwrap returns the alert.
func (e *Error) Unwrap() error { return e.Alert }

// Closed reports that nothing more may be sealed: AppendClose was called, or must be because Open has refused
// something, or the peer has broken off.
func (s *Session) Closed() bool { return s.silent || s.alert != alertCloseNotify }

// Seal makes a record of application data in place. b has HeaderBytes of room in
// front, then at most ContentBytesMax of data, and capacity for TrailerBytes
// behind. Before, UpdateDue and Closed must be false; a record that was begun may still be sealed before AppendClose.
func (s *Session) Seal(b []byte) []byte {
	if len(b) > HeaderBytes+ContentBytesMax || s.silent || s.out.seq > sealedMax {
		panic("tls13: Seal of a record that must not be")
	}
	s.useless = 0
	return s.out.seal(append(b, typeData))
}

// UpdateDue reports that AppendUpdate must come before the next Seal: our keys
// have protected as many records as they may, or the peer has asked for new
// ones. Who asks after each Open answers any number of requests in it once.
func (s *Session) UpdateDue() bool { return (s.owed || s.out.seq >= sealedMax) && !s.Closed() }

// Sealed is how many records our present keys have protected.
func (s *Session) Sealed() uint64 { return s.out.seq }

// AppendUpdate appends a record with a KeyUpdate to b and goes on with new keys for what is written (section 4.6.3).
func (s *Session) AppendUpdate(b []byte) ([]byte, error) {
	s.owed = false
	b = s.appendControl(b, typeHandshake, messageKeyUpdate, 0, 0, 1, 0)
	return b, s.out.update()
}

// AppendClose appends the last record to b: the fatal alert, after Open has
// refused something, else close_notify. It appends nothing when called again,
// and nothing for a peer that has broken the connection off itself. What the
// peer still sends can be read on.
func (s *Session) AppendClose(b []byte) []byte {
	if s.silent {
		return b
	}
	s.silent = true
	level := byte(levelFatal)
	if s.alert == alertCloseNotify {
		level = levelWarning
	}
	return s.appendControl(b, typeAlert, level, byte(s.alert))
}

func (s *Session) appendControl(b []byte, kind byte, content ...byte) []byte {
	var scratch [controlRecordBytes]byte
	record := append(append(scratch[:HeaderBytes], content...), kind)
	return append(b, s.out.seal(record)...)
}

// Ended returns io.EOF if the peer may end without close_notify here: between records, and not within a message. As
// crypto/tls, we let many a peer that does so pass. Elsewhere it returns io.ErrUnexpectedEOF. rest is what Open left.
func (s *Session) Ended(rest []byte) error {
	if len(rest) > 0 || len(s.message) > 0 {
		return io.ErrUnexpectedEOF
	}
	return io.EOF
}

// Forget zeroes the secrets. The session is of no more use.
func (s *Session) Forget() {
	s.in.forget()
	s.out.forget()
	s.silent, s.message, s.ticket = true, nil, nil
	if s.end == nil {
		s.end = io.ErrClosedPipe
	}
}
