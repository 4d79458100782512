package channel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"
)

func TestReadFrame(t *testing.T) {
	tests := []struct {
		name, in string
		want     string
		code     Code // OK: the message is read
	}{
		{"a message", "\x00\x00\x00\x00\x02hirest", "hi", OK},
		{"an empty message", "\x00\x00\x00\x00\x00", "", OK},
		{"compressed", "\x01\x00\x00\x00\x02hi", "", Internal},
		{"too long", "\x00\x00\x40\x00\x01", "", ResourceExhausted},
		{"cut in the prefix", "\x00\x00", "", Unavailable},
		{"cut in the message", "\x00\x00\x00\x00\x02h", "", Unavailable},
		{"cut before the message", "\x00\x00\x00\x00\x02", "", Unavailable},
	}
	for _, tt := range tests {
		got, err := readFrame(bytes.NewReader([]byte(tt.in)))
		if CodeOf(err) != tt.code || string(got) != tt.want || tt.code == OK && got == nil {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
	if _, err := readFrame(bytes.NewReader(nil)); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
}

func TestEncodeTimeout(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "1m", 0: "1m", time.Millisecond: "1m", 1500 * time.Millisecond: "1500m", 1500*time.Millisecond + 1: "1501m",
		99_999_999 * time.Millisecond: "99999999m", 100_000_000 * time.Millisecond: "100000S", 1<<63 - 1: "99999999S",
	} {
		if got := encodeTimeout(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestDecodeMessage(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", "a%20b": "a b", "%C3%A9": "é", "100%": "100%", "%zz": "%zz", "%4": "%4", "%25%2": "%%2",
	} {
		if got := decodeMessage(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestCodes(t *testing.T) {
	if Unauthenticated != 16 || Unauthenticated.String() != "Unauthenticated" || OK.String() != "OK" || Code(99).String() != "Code(99)" {
		t.Errorf("%d %v %v %v", Unauthenticated, Unauthenticated, OK, Code(99))
	}
	for reset, want := range map[uint32]Code{0x1: Internal, 0x7: Unavailable, 0x8: Canceled, 0xb: ResourceExhausted, 0xc: PermissionDenied} {
		if got := CodeOf(transportError(context.Background(), streamError{Code: reset})); got != want {
			t.Errorf("reset %#x: %v, want %v", reset, got, want)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x02hi"))
	f.Add([]byte("\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := readFrame(bytes.NewReader(in))
		if err != nil {
			return
		}
		frame, err := frameOf(m)
		if err != nil || !bytes.HasPrefix(in, frame) {
			t.Fatalf("%q read as %q: %v", in, m, err)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add("a%20b%")
	f.Fuzz(func(t *testing.T, in string) {
		if out := decodeMessage(in); len(out) > len(in) {
			t.Fatalf("%q grew to %q", in, out)
		}
	})
}
