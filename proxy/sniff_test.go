package proxy

import (
	"slices"
	"testing"
)

func TestSniff(t *testing.T) {
	tests := []struct {
		in   string
		want guess
	}{
		{"", guessMore},
		{"G", guessMore},
		{"GET /", guessMore},
		{"GET / HTTP/1.1\r\n", guessHTTP1},
		{"GET / HTTP/1.0\n", guessHTTP1},
		{"\r\nGET / HTTP/1.1\r\n", guessHTTP1},
		{"PROPFIND /dav HTTP/1.1\r\nHost: x\r\n", guessHTTP1},
		{"P", guessMore},
		{"PRI * HTTP/2.0\r\n", guessMore},
		{preface, guessHTTP2},
		{preface + "\x00\x00", guessHTTP2},
		{"EHLO mail.example\r\n", guessOther},
		{"USER me\r\n", guessOther},
		{"PRIVMSG x :hi\r\n", guessOther},
		{"GET /\r\n", guessOther}, // HTTP/0.9 is not HTTP for us
		{"\x16\x03\x01", guessOther},
		{"*1\r\n$4\r\nPING\r\n", guessOther},
		{"\x00\x00\x00\x25", guessOther},
		{" GET / HTTP/1.1\r\n", guessOther},
		{"AVERYLONGWORDWITHOUTANYSPACE", guessOther},
	}
	for _, tt := range tests {
		if got := sniff([]byte(tt.in)); got != tt.want {
			t.Errorf("sniff(%q) = %d, want %d", tt.in, got, tt.want)
		}
	}
	long := append([]byte("GET /"), make([]byte, sniffBytes)...)
	if got := sniff(long); got != guessOther {
		t.Errorf("a line without an end: %d, want %d", got, guessOther)
	}
}

func FuzzSniff(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		got := sniff(p)
		if got == guessMore && len(p) > sniffBytes {
			t.Fatal("waits for ever")
		}
		// What was decided stays decided when more bytes arrive.
		if got != guessMore && sniff(append(slices.Clip(p), "x\r\n"...)) != got {
			t.Fatalf("changes its mind: %q", p)
		}
	})
}
