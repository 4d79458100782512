package tls13

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzOpen gives Open records that were changed, cut, repeated and put in another order. What comes out is always a
// beginning of what went in, and the same for any cut of the stream.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3}, uint16(0), byte(0), uint16(100))
	f.Add([]byte{0, 1, 1, 2}, uint16(0), byte(0), uint16(1))
	f.Add([]byte{1, 0}, uint16(7), byte(1), uint16(7))
	f.Add([]byte{0, 1, 2}, uint16(30), byte(0x80), uint16(33))
	f.Fuzz(func(t *testing.T, order []byte, at uint16, flip byte, cut uint16) {
		client, server := pair(t, suites[0])
		_, twin := pair(t, suites[0])
		var want []byte
		var records [][]byte
		for i := range 4 {
			data := bytes.Repeat([]byte{byte('a' + i)}, 20*i+1)
			want = append(want, data...)
			client.owed = i == 2
			records = append(records, seal(t, client, data))
		}
		var in []byte
		for _, i := range order[:min(len(order), 50)] {
			in = append(in, records[int(i)%len(records)]...)
		}
		if len(in) > 0 {
			in[int(at)%len(in)] ^= flip
		}
		dst := make([]byte, len(in))
		n, used, err := server.Open(dst, in)
		if !bytes.HasPrefix(want, dst[:n]) {
			t.Fatalf("%q came out", dst[:n])
		}
		if used > len(in) || n > used {
			t.Fatalf("%d bytes of %d, %d used", n, len(in), used)
		}
		if e, ok := errors.AsType[*Error](err); err != nil && (!ok || e.Alert == alertCloseNotify) {
			t.Fatalf("Open: %v", err)
		}
		var pieces, rest []byte
		var twinErr error
		for step := int(cut)%1000 + 1; len(in) > 0 && twinErr == nil; {
			k := min(step, len(in))
			rest, in = append(rest, in[:k]...), in[k:]
			buffer := make([]byte, len(rest))
			var m, u int
			m, u, twinErr = twin.Open(buffer, rest)
			pieces, rest = append(pieces, buffer[:m]...), rest[u:]
		}
		if !bytes.Equal(pieces, dst[:n]) || (twinErr == nil) != (err == nil) {
			t.Fatalf("in pieces %q, %v; at once %q, %v", pieces, twinErr, dst[:n], err)
		}
	})
}

// FuzzInner gives Open whatever a peer that has the keys can put in a record.
func FuzzInner(f *testing.F) {
	f.Add([]byte{messageKeyUpdate, 0, 0, 1, 1, typeHandshake}, []byte("x\x17"), false)
	f.Add(append(bytes.Clone(good), typeHandshake), []byte{1, 0, typeAlert}, true)
	f.Add(append(bytes.Clone(good[:9]), typeHandshake), append(bytes.Clone(good[9:]), typeHandshake, 0, 0), true)
	f.Fuzz(func(t *testing.T, first, second []byte, isClient bool) {
		us, peer := pair(t, suites[0])
		if !isClient {
			us, peer = peer, us
		}
		us.ticket = func(record []byte) {
			if len(record) <= HeaderBytes {
				t.Error("not a record was passed on")
			}
		}
		for _, inner := range [][]byte{first, second} {
			if len(inner) > sealedBytesMax-tagBytes {
				return
			}
			in := raw(peer, inner...)
			n, used, err := us.Open(make([]byte, len(in)), in)
			if n > len(inner) || err == nil && used != len(in) || len(us.message) > messageBytesMax {
				t.Fatalf("%d bytes of %d, %d of %d used, %d kept, %v", n, len(inner), used, len(in), len(us.message), err)
			}
			if us.UpdateDue() {
				if _, err := us.AppendUpdate(nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
