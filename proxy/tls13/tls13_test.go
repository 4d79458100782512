package tls13

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// secretsOf has Secrets learn both secrets in the way in which crypto/tls tells them.
func secretsOf(tb testing.TB, client, server []byte) *Secrets {
	tb.Helper()
	s := &Secrets{}
	for _, l := range []struct {
		label  string
		secret []byte
	}{
		{"CLIENT_HANDSHAKE_TRAFFIC_SECRET", make([]byte, len(client))},
		{"CLIENT_TRAFFIC_SECRET_0", client},
		{"SERVER_TRAFFIC_SECRET_0", server},
	} {
		line := fmt.Appendf(nil, "%s %x %x\n", l.label, make([]byte, 32), l.secret)
		if n, err := s.Write(line); n != len(line) || err != nil {
			tb.Fatalf("Write: %d, %v", n, err)
		}
	}
	return s
}

func random(size int) []byte {
	p := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(p)
	return p
}

// pair makes the two ends of a connection.
func pair(tb testing.TB, suite uint16) (client, server *Session) {
	tb.Helper()
	size := 32
	if suite == tls.TLS_AES_256_GCM_SHA384 {
		size = 48
	}
	a, b := random(size), random(2 * size)[:size]
	client, err := New(Config{Suite: suite, Client: true, Secrets: secretsOf(tb, a, b)})
	if err != nil {
		tb.Fatal(err)
	}
	server, err = New(Config{Suite: suite, Secrets: secretsOf(tb, a, b)})
	if err != nil {
		tb.Fatal(err)
	}
	return client, server
}

var suites = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}

// seal makes a record of data, after a KeyUpdate if one is due.
func seal(tb testing.TB, s *Session, data []byte) []byte {
	tb.Helper()
	var out []byte
	if s.UpdateDue() {
		var err error
		if out, err = s.AppendUpdate(nil); err != nil {
			tb.Fatal(err)
		}
	}
	b := make([]byte, HeaderBytes, HeaderBytes+len(data)+TrailerBytes)
	return append(out, s.Seal(append(b, data...))...)
}

// raw makes a record of any inner plaintext: content, type, padding.
func raw(s *Session, inner ...byte) []byte {
	b := make([]byte, HeaderBytes, HeaderBytes+len(inner)+tagBytes)
	return s.out.seal(append(b, inner...))
}

// message is a record that holds content of a type.
func message(s *Session, kind byte, content ...byte) []byte {
	return raw(s, append(bytes.Clone(content), kind)...)
}

func unhex(tb testing.TB, text string) []byte {
	tb.Helper()
	p, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// The trace is RFC 8448 section 3.
const (
	traceClient = "9e40646ce79a7f9dc05af8889bce6552 875afa0b06df0087f792ebb7c17504a5"
	traceServer = "a11af9f05531f856ad47116b45a95032 8204b4f44bfb6b3a4b4f1f3fcb631643"
	// traceData holds the bytes 0 to 49.
	traceClientData = `17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f
		2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21
		69 49 15 e4`
	traceServerData = `17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b
		36 e3 0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1
		67 c2 95 5d`
	traceClientClose = "17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3"
	traceServerClose = "17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9"
)

func TestTrace(t *testing.T) {
	client, server := unhex(t, traceClient), unhex(t, traceServer)
	s, err := New(Config{Suite: tls.TLS_AES_128_GCM_SHA256, Client: true, Secrets: secretsOf(t, client, server)})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.out.iv[:], unhex(t, "5b78923dee08579033e523d9"); !bytes.Equal(got, want) {
		t.Errorf("client iv %x, want %x", got, want)
	}
	if got, want := s.in.iv[:], unhex(t, "cf782b88dd83549aadf1e984"); !bytes.Equal(got, want) {
		t.Errorf("server iv %x, want %x", got, want)
	}
	data := make([]byte, 50)
	for i := range data {
		data[i] = byte(i)
	}
	if got, want := seal(t, s, data), unhex(t, traceClientData); !bytes.Equal(got, want) {
		t.Errorf("client's record\n%x, want\n%x", got, want)
	}
	s.in.seq = 1 // behind the ticket
	in := append(unhex(t, traceServerData), unhex(t, traceServerClose)...)
	dst := make([]byte, len(in))
	n, used, err := s.Open(dst, in)
	if !bytes.Equal(dst[:n], data) || used != len(in) || !errors.Is(err, io.EOF) {
		t.Errorf("Open: %x, %d of %d, %v", dst[:n], used, len(in), err)
	}
	if got, want := s.AppendClose(nil), unhex(t, traceClientClose); !bytes.Equal(got, want) {
		t.Errorf("client's close_notify\n%x, want\n%x", got, want)
	}
}

// Any cut of the stream, any room for what comes out: the same data.
func TestRoundTrip(t *testing.T) {
	for _, suite := range suites {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			client, server := pair(t, suite)
			r := rand.New(rand.NewPCG(1, uint64(suite)))
			var want, wire, got []byte
			for range 200 {
				data := random(1 + r.IntN(ContentBytesMax))
				if r.IntN(10) == 0 {
					client.owed = true
				}
				want = append(want, data...)
				wire = append(wire, seal(t, client, data)...)
			}
			wire = client.AppendClose(wire)
			var err error
			var rest []byte
			for len(wire) > 0 && err == nil {
				piece := min(len(wire), r.IntN(100_000))
				rest, wire = append(rest, wire[:piece]...), wire[piece:]
				dst := make([]byte, RecordBytesMax+r.IntN(100_000))
				var n, used int
				n, used, err = server.Open(dst, rest)
				got, rest = append(got, dst[:n]...), rest[used:]
			}
			for len(rest) > 0 && err == nil {
				dst := make([]byte, RecordBytesMax)
				var n, used int
				n, used, err = server.Open(dst, rest)
				got, rest = append(got, dst[:n]...), rest[used:]
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("Open: %v", err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes came out that are not the %d that went in", len(got), len(want))
			}
		})
	}
}

func TestPadding(t *testing.T) {
	client, server := pair(t, suites[0])
	in := raw(client, append([]byte("padded\x00"), append([]byte{typeData}, make([]byte, 300)...)...)...)
	in = append(in, raw(client, append([]byte{typeData}, make([]byte, ContentBytesMax)...)...)...) // nothing but padding
	in = append(in, raw(client, append(make([]byte, ContentBytesMax), typeData)...)...)
	dst := make([]byte, len(in))
	n, used, err := server.Open(dst, in)
	if err != nil || used != len(in) || n != 7+ContentBytesMax || string(dst[:7]) != "padded\x00" {
		t.Errorf("Open: %d bytes %q, %d of %d, %v", n, dst[:min(n, 7)], used, len(in), err)
	}
}

// ticket is a NewSessionTicket: lifetime, age_add, nonce, ticket, and what stands for extensions.
func ticket(extensions ...byte) []byte {
	body := append([]byte{0, 0, 1, 0, 1, 2, 3, 4, 1, 0, 0, 2, 9, 9}, extensions...)
	return append([]byte{messageTicket, 0, 0, byte(len(body))}, body...)
}

// good is a ticket with an extension of two bytes.
var good = ticket(0, 6, 0, 42, 0, 2, 7, 7)

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		client bool // whether the side that refuses is the client
		in     func(peer *Session) []byte
		want   tls.AlertError
	}{
		{"forged", false, func(p *Session) []byte { r := seal(t, p, []byte("x")); r[len(r)-1] ^= 1; return r }, alertBadRecordMAC},
		{"header changed", false, func(p *Session) []byte { r := seal(t, p, []byte("x")); r[2] ^= 1; return r }, alertBadRecordMAC},
		{"one lost", false, func(p *Session) []byte { seal(t, p, []byte("x")); return seal(t, p, []byte("x")) }, alertBadRecordMAC},
		{"repeated", false, func(p *Session) []byte { r := seal(t, p, []byte("x")); return append(r, r...) }, alertBadRecordMAC},
		{"nothing in it", false, func(*Session) []byte { return []byte{23, 3, 3, 0, 0} }, alertBadRecordMAC},
		{"tag alone", false, func(p *Session) []byte { return raw(p) }, alertUnexpectedMessage},
		{"zeros", false, func(p *Session) []byte { return raw(p, make([]byte, 100)...) }, alertUnexpectedMessage},
		{"too long", false, func(*Session) []byte { return []byte{23, 3, 3, 0x41, 1} }, alertRecordOverflow},
		{"holds too much", false, func(p *Session) []byte { return raw(p, append(make([]byte, ContentBytesMax+1), typeData)...) }, alertRecordOverflow},
		{"too much padding", false, func(p *Session) []byte {
			return raw(p, append([]byte{typeData}, make([]byte, ContentBytesMax+1)...)...)
		}, alertRecordOverflow},
		{"change_cipher_spec", false, func(*Session) []byte { return []byte{20, 3, 3, 0, 1, 1} }, alertUnexpectedMessage},
		{"change_cipher_spec, protected", false, func(p *Session) []byte { return message(p, typeChangeCipherSpec, 1) }, alertUnexpectedMessage},
		{"alert in the clear", false, func(*Session) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }, alertUnexpectedMessage},
		{"one byte of plaintext", false, func(*Session) []byte { return []byte("G") }, alertUnexpectedMessage},
		{"unknown type", false, func(p *Session) []byte { return message(p, 99, 1, 2) }, alertUnexpectedMessage},
		{"empty alert", false, func(p *Session) []byte { return message(p, typeAlert) }, alertUnexpectedMessage},
		{"half an alert", false, func(p *Session) []byte { return message(p, typeAlert, 1) }, alertDecodeError},
		{"two alerts", false, func(p *Session) []byte { return message(p, typeAlert, 1, 90, 1, 0) }, alertDecodeError},
		{"empty handshake", false, func(p *Session) []byte { return message(p, typeHandshake) }, alertUnexpectedMessage},
		{"ClientHello", false, func(p *Session) []byte { return message(p, typeHandshake, 1) }, alertUnexpectedMessage},
		{"HelloRequest", true, func(p *Session) []byte { return message(p, typeHandshake, 0, 0, 0, 0) }, alertUnexpectedMessage},
		{"CertificateRequest", true, func(p *Session) []byte { return message(p, typeHandshake, 13, 0, 0, 3, 0, 0, 0) }, alertUnexpectedMessage},
		{"ticket from a client", false, func(p *Session) []byte { return message(p, typeHandshake, good...) }, alertUnexpectedMessage},
		{"ticket of no bytes", true, func(p *Session) []byte {
			return message(p, typeHandshake, messageTicket, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		}, alertDecodeError},
		{"ticket too short", true, func(p *Session) []byte { return message(p, typeHandshake, messageTicket, 0, 0, 2, 0, 0) }, alertDecodeError},
		{"ticket without extensions", true, func(p *Session) []byte { return message(p, typeHandshake, ticket()...) }, alertDecodeError},
		{"ticket with too few", true, func(p *Session) []byte { return message(p, typeHandshake, ticket(0, 1)...) }, alertDecodeError},
		{"ticket with more behind", true, func(p *Session) []byte { return message(p, typeHandshake, ticket(0, 0, 1)...) }, alertDecodeError},
		{"ticket with half an extension", true, func(p *Session) []byte { return message(p, typeHandshake, ticket(0, 4, 0, 42, 0, 1)...) }, alertDecodeError},
		{"ticket with a byte for an extension", true, func(p *Session) []byte { return message(p, typeHandshake, ticket(0, 1, 0)...) }, alertDecodeError},
		{"enormous ticket", true, func(p *Session) []byte { return message(p, typeHandshake, messageTicket, 1, 0, 0) }, alertIllegalParameter},
		{"KeyUpdate too long", false, func(p *Session) []byte { return message(p, typeHandshake, messageKeyUpdate, 0, 0, 2, 0, 0) }, alertDecodeError},
		{"KeyUpdate empty", false, func(p *Session) []byte { return message(p, typeHandshake, messageKeyUpdate, 0, 0, 0) }, alertDecodeError},
		{"KeyUpdate request 2", false, func(p *Session) []byte { return message(p, typeHandshake, messageKeyUpdate, 0, 0, 1, 2) }, alertIllegalParameter},
		{"message behind KeyUpdate", false, func(p *Session) []byte {
			return message(p, typeHandshake, messageKeyUpdate, 0, 0, 1, 0, messageKeyUpdate, 0, 0, 1, 0)
		}, alertUnexpectedMessage},
		{"data within a message", false, func(p *Session) []byte {
			return append(message(p, typeHandshake, messageKeyUpdate, 0), seal(t, p, []byte("x"))...)
		}, alertUnexpectedMessage},
		{"alert within a message", false, func(p *Session) []byte {
			return append(message(p, typeHandshake, messageKeyUpdate, 0), message(p, typeAlert, 1, 0)...)
		}, alertUnexpectedMessage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := pair(t, suites[0])
			us, peer := server, client
			if tt.client {
				us, peer = client, server
			}
			in := append(seal(t, peer, []byte("before")), tt.in(peer)...)
			dst := make([]byte, len(in)+RecordBytesMax)
			n, _, err := us.Open(dst, in)
			var refused *Error
			if !errors.As(err, &refused) || refused.Alert != tt.want || !errors.Is(err, tt.want) {
				t.Fatalf("Open: %v, want %v", err, tt.want)
			}
			if !strings.HasPrefix(string(dst[:n]), "before") {
				t.Errorf("what came before is lost: %q", dst[:n])
			}
			if !us.Closed() {
				t.Error("the session is not closed")
			}
			if _, _, again := us.Open(dst, seal(t, peer, []byte("after"))); !errors.Is(again, err) {
				t.Errorf("Open again: %v, want the same error", again)
			}
			// The peer hears of it.
			alert := us.AppendClose(nil)
			if _, _, err := peer.Open(dst, alert); !errors.Is(err, tt.want) {
				t.Errorf("the peer hears %v, want %v", err, tt.want)
			}
			if more := append(us.AppendClose(nil), peer.AppendClose(nil)...); len(more) > 0 {
				t.Errorf("%x is sent after the alert", more)
			}
		})
	}
}

func TestUselessRecords(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(p *Session) []byte
	}{
		{"empty data", func(p *Session) []byte { return raw(p, typeData) }},
		{"user_canceled", func(p *Session) []byte { return message(p, typeAlert, 1, alertUserCanceled) }},
		{"KeyUpdate", func(p *Session) []byte {
			r := message(p, typeHandshake, messageKeyUpdate, 0, 0, 1, 1)
			if err := p.out.update(); err != nil {
				t.Fatal(err)
			}
			return r
		}},
		{"ticket", func(p *Session) []byte { return message(p, typeHandshake, good...) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			us, peer := pair(t, suites[0])
			open := func(in []byte) error {
				n, used, err := us.Open(make([]byte, len(in)), in)
				if n > 1 || err == nil && used != len(in) {
					t.Errorf("Open: %d bytes, %d of %d", n, used, len(in))
				}
				return err
			}
			for round := range 3 { // data, in either direction, makes up for it
				var in []byte
				for range uselessMax {
					in = append(in, tt.make(peer)...)
				}
				if err := open(in); err != nil {
					t.Fatal(err)
				}
				if round == 0 {
					if err := open(seal(t, peer, []byte("x"))); err != nil {
						t.Fatal(err)
					}
				} else {
					seal(t, us, []byte("x"))
				}
			}
			for range uselessMax {
				if err := open(tt.make(peer)); err != nil {
					t.Fatal(err)
				}
			}
			if err := open(tt.make(peer)); !errors.Is(err, tls.AlertError(alertUnexpectedMessage)) {
				t.Errorf("Open: %v after too many", err)
			}
		})
	}
}

func TestKeyUpdate(t *testing.T) {
	for _, suite := range suites {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			client, server := pair(t, suite)
			dst := make([]byte, 1000)
			for i := range 5 {
				request := message(client, typeHandshake, messageKeyUpdate, 0, 0, 1, 1)
				if err := client.out.update(); err != nil {
					t.Fatal(err)
				}
				if i == 3 { // twice, and answered once
					request = append(request, message(client, typeHandshake, messageKeyUpdate, 0, 0, 1, 1)...)
					if err := client.out.update(); err != nil {
						t.Fatal(err)
					}
				}
				in := append(request, seal(t, client, []byte("new"))...)
				if n, _, err := server.Open(dst, in); string(dst[:n]) != "new" || err != nil {
					t.Fatalf("Open: %q, %v", dst[:n], err)
				}
				if !server.UpdateDue() {
					t.Fatal("no answer is due")
				}
				old := bytes.Clone(server.out.secret)
				answer := seal(t, server, []byte("answer"))
				if server.UpdateDue() || bytes.Equal(old, server.out.secret) || server.Sealed() != 1 {
					t.Error("the keys were not changed")
				}
				if n, _, err := client.Open(dst, answer); string(dst[:n]) != "answer" || err != nil {
					t.Fatalf("Open: %q, %v", dst[:n], err)
				}
				if client.UpdateDue() {
					t.Error("an answer is due to the answer")
				}
			}
		})
	}
}

func TestKeysDoNotGetOld(t *testing.T) {
	client, server := pair(t, suites[0])
	client.out.seq, server.in.seq = sealedMax-1, sealedMax-1
	dst := make([]byte, 100)
	for _, text := range []string{"last", "first"} {
		if got, want := client.UpdateDue(), text == "first"; got != want {
			t.Errorf("UpdateDue before the %s record: %v", text, got)
		}
		if n, _, err := server.Open(dst, seal(t, client, []byte(text))); string(dst[:n]) != text || err != nil {
			t.Errorf("Open: %q, %v", dst[:n], err)
		}
	}
	if server.in.seq != 1 || server.UpdateDue() {
		t.Errorf("the server reads record %d, and owes an update: %v", server.in.seq, server.UpdateDue())
	}
	defer func() {
		if recover() == nil {
			t.Error("Seal went on with worn keys")
		}
	}()
	client.out.seq = sealedMax + 1
	client.Seal(make([]byte, HeaderBytes+1, 100))
}

func TestHalfClose(t *testing.T) {
	client, server := pair(t, suites[0])
	dst := make([]byte, 100)
	in := client.AppendClose(seal(t, client, []byte("bye")))
	if again := client.AppendClose(nil); len(again) > 0 {
		t.Errorf("closed twice: %x", again)
	}
	n, used, err := server.Open(dst, append(in, "garbage behind the end"...))
	if string(dst[:n]) != "bye" || used != len(in) || !errors.Is(err, io.EOF) {
		t.Fatalf("Open: %q, %d of %d, %v", dst[:n], used, len(in), err)
	}
	if server.Closed() {
		t.Error("our direction is closed too")
	}
	request := message(server, typeHandshake, messageKeyUpdate, 0, 0, 1, 1)
	if err := server.out.update(); err != nil {
		t.Fatal(err)
	}
	if n, _, err := client.Open(dst, append(request, seal(t, server, []byte("late"))...)); string(dst[:n]) != "late" || err != nil {
		t.Errorf("Open: %q, %v", dst[:n], err)
	}
	if client.UpdateDue() {
		t.Error("an update is due after close_notify")
	}
}

func TestPeerBreaksOff(t *testing.T) {
	client, server := pair(t, suites[0])
	_, _, err := server.Open(make([]byte, 10), message(client, typeAlert, levelFatal, alertInternalError))
	if !errors.Is(err, tls.AlertError(alertInternalError)) {
		t.Errorf("Open: %v", err)
	}
	if out := server.AppendClose(nil); len(out) > 0 || !server.Closed() {
		t.Errorf("the peer is answered %x", out)
	}
}

func TestEnded(t *testing.T) {
	client, server := pair(t, suites[0])
	if err := server.Ended(nil); !errors.Is(err, io.EOF) {
		t.Errorf("between records: %v", err)
	}
	if err := server.Ended([]byte{23}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("in a record: %v", err)
	}
	if _, _, err := server.Open(make([]byte, 10), message(client, typeHandshake, messageKeyUpdate)); err != nil {
		t.Fatal(err)
	}
	if err := server.Ended(nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("in a message: %v", err)
	}
}

// Tickets are passed on as they came, in as many records as they like, until something else comes.
func TestTickets(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   func(p *Session) [][]byte
		want int // records
	}{
		{"one", func(p *Session) [][]byte { return [][]byte{message(p, typeHandshake, good...)} }, 1},
		{"two in one record", func(p *Session) [][]byte {
			return [][]byte{message(p, typeHandshake, append(bytes.Clone(good), good...)...)}
		}, 1},
		{"in parts", func(p *Session) [][]byte {
			return [][]byte{
				message(p, typeHandshake, good[:2]...), message(p, typeHandshake, good[2:9]...),
				message(p, typeHandshake, append(bytes.Clone(good[9:]), good[:1]...)...), message(p, typeHandshake, good[1:]...),
			}
		}, 4},
		{"after data", func(p *Session) [][]byte {
			return [][]byte{seal(t, p, []byte("x")), message(p, typeHandshake, good...)}
		}, 0},
		{"after KeyUpdate", func(p *Session) [][]byte {
			update, err := p.AppendUpdate(nil)
			if err != nil {
				t.Error(err)
			}
			return [][]byte{update, message(p, typeHandshake, good...)}
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := pair(t, suites[0])
			var got [][]byte
			client.ticket = func(r []byte) { got = append(got, bytes.Clone(r)) }
			records := tt.in(server)
			in := bytes.Join(records, nil)
			if _, used, err := client.Open(make([]byte, len(in)), in); used != len(in) || err != nil {
				t.Fatalf("Open: %d of %d, %v", used, len(in), err)
			}
			want := records[:tt.want]
			if diff := cmp.Diff(len(want), len(got)); diff != "" {
				t.Fatalf("records passed on (-want +got):\n%s", diff)
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("record %d is not as it came", i)
				}
			}
			if len(client.message) > 0 {
				t.Errorf("%d bytes of a message are kept", len(client.message))
			}
		})
	}
}

// What our side has written before, of which some was protected by the handshake's keys, and some by ours.
func TestSent(t *testing.T) {
	_, before := pair(t, suites[0])
	_, other := pair(t, suites[1])
	sent := []byte{22, 3, 3, 0, 1, 2, 20, 3, 3, 0, 1, 1}
	sent = append(sent, seal(t, other, []byte("Finished"))...)
	for range 3 {
		sent = append(sent, message(before, typeHandshake, good...)...)
	}
	client, fresh := pair(t, suites[0])
	size := len(fresh.out.secret)
	server, err := New(Config{Suite: suites[0], Secrets: secretsOf(t, random(size), random(2 * size)[:size]), Sent: sent})
	if err != nil {
		t.Fatal(err)
	}
	client.in.seq = 3
	dst := make([]byte, 10)
	if n, _, err := client.Open(dst, seal(t, server, []byte("fourth"))); string(dst[:n]) != "fourth" || err != nil {
		t.Errorf("Open: %q, %v", dst[:n], err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
	}{
		{"no secrets", Config{Suite: suites[0], Secrets: &Secrets{}}},
		{"suite of TLS 1.2", Config{Suite: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, Secrets: secretsOf(t, random(32), random(32))}},
		{"secret of no hash", Config{Suite: suites[0], Secrets: secretsOf(t, random(64), random(64))}},
	} {
		if _, err := New(tt.cfg); err == nil {
			t.Errorf("%s: accepted", tt.name)
		}
		if tt.cfg.Secrets.Known() || tt.cfg.Secrets.client.b != [secretBytesMax]byte{} {
			t.Errorf("%s: the secrets are not cleared", tt.name)
		}
	}
}

func TestForget(t *testing.T) {
	client, _ := pair(t, suites[0])
	secret := client.in.secret
	client.Forget()
	if !bytes.Equal(secret, make([]byte, len(secret))) {
		t.Error("a secret is still there")
	}
	if _, _, err := client.Open(nil, []byte{23, 3, 3, 0, 0}); err == nil || !client.Closed() || len(client.AppendClose(nil)) > 0 {
		t.Errorf("a forgotten session goes on: %v", err)
	}
}

func TestRecordsAllocateNothing(t *testing.T) {
	for _, suite := range suites {
		client, server := pair(t, suite)
		b, dst := make([]byte, RecordBytesMax), make([]byte, RecordBytesMax)
		if n := testing.AllocsPerRun(100, func() {
			if _, _, err := server.Open(dst, client.Seal(b[:HeaderBytes+10_000])); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations per record, want 0", tls.CipherSuiteName(suite), n)
		}
	}
}
