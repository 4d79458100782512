package http2

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// decoded is what a decoder makes of blocks, up to the first that is wrong.
type decoded struct {
	Fields [][2]string
	Wrong  bool
}

// decodeOurs decodes blocks and returns the regular fields that are tokens.
func decodeOurs(blocks [][]byte) (out decoded) {
	var d decoder
	var r headReader
	cfg := Config{HeadBytesMax: 1 << 30, HeadFieldsMax: 1 << 30, HTTP1: true}.withDefaults()
	for _, block := range blocks {
		block = bytes.Clone(block)
		h := new(stream.Head)
		h.Reset()
		r.begin(kindTrailers, h, &cfg)
		err := d.decode(block, &r)
		for i := range h.Len() {
			name, value := h.At(i)
			out.Fields = append(out.Fields, [2]string{string(name), string(value)})
		}
		if err != nil {
			out.Wrong = true
			return out
		}
		clear(block) // what was remembered must not stand in it
	}
	return out
}

// decodeTheirs does the same with the library.
func decodeTheirs(blocks [][]byte) (out decoded) {
	var r headReader
	var h *stream.Head
	cfg := Config{HeadBytesMax: 1 << 30, HeadFieldsMax: 1 << 30, HTTP1: true}.withDefaults()
	var d *hpack.Decoder
	d = hpack.NewDecoder(hpackTableSize, func(f hpack.HeaderField) {
		if !r.field(f.Name, f.Value) {
			d.SetEmitEnabled(false)
		}
	})
	for _, block := range blocks {
		h = new(stream.Head)
		h.Reset()
		r.begin(kindTrailers, h, &cfg)
		d.SetEmitEnabled(true)
		_, err := d.Write(block)
		if err == nil {
			err = d.Close()
		}
		for i := range h.Len() {
			name, value := h.At(i)
			out.Fields = append(out.Fields, [2]string{string(name), string(value)})
		}
		if err != nil {
			out.Wrong = true
			return out
		}
	}
	return out
}

// blocksOf cuts p into blocks: each begins with its length.
func blocksOf(p []byte) (blocks [][]byte) {
	for len(p) > 0 && len(blocks) < 16 {
		n := min(int(p[0]), len(p)-1)
		blocks = append(blocks, p[1:1+n])
		p = p[1+n:]
	}
	return blocks
}

func blockIn(p ...byte) []byte { return append([]byte{byte(len(p))}, p...) }

var hpackSeeds = [][]byte{
	{},
	blockIn(0x40, 1, 'a', 1, 'b'),
	append(blockIn(0x40, 1, 'a', 1, 'b'), blockIn(0xbe, 0xbe)...),
	append(blockIn(0x40, 1, 'a', 0), blockIn(0xbe)...), // without a value
	append(blockIn(0x40, 1, 'a', 1, 'b', 0x40, 1, 'c', 1, 'd'), blockIn(0xbf, 0x7e, 1, 'e', 0xbe, 0xc0)...),
	blockIn(0x0f, 0x0a, 0x81, 0x1f),                                           // content-encoding... with Huffman's code of "a"
	blockIn(0x0f, 0x0a, 0x81, 0x18),                                           // ... with wrong padding
	blockIn(0x20, 0x40, 1, 'a', 1, 'b', 0xbe),                                 // a table of nothing
	blockIn(0x3f, 0xe1, 0x1f, 0x40, 1, 'a', 1, 'b'),                           // 4096
	blockIn(0x3f, 0xe2, 0x1f),                                                 // 4097
	blockIn(0x40, 1, 'a', 1, 'b', 0x20),                                       // too late
	blockIn(0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80), // endless number
	blockIn(0xff, 0x80, 0x00, 0x40, 1, 'x'),                                   // ends within a field
	blockIn(0x00, 0, 1, 'x', 0x40, 1, 'a', 1, 'b'),                            // a name that is refused, and what is remembered after it
	append(blockIn(0x00, 0, 1, 'x', 0x40, 1, 'a', 1, 'b'), blockIn(0xbe)...),
}

func TestDecoderAgainstLibrary(t *testing.T) {
	for _, p := range hpackSeeds {
		blocks := blocksOf(p)
		if diff := cmp.Diff(decodeTheirs(blocks), decodeOurs(blocks)); diff != "" {
			t.Errorf("%x: the library's and ours (-/+):\n%s", p, diff)
		}
	}
}

// FuzzDecoder compares our decoder with the library's, over blocks that follow one another.
func FuzzDecoder(f *testing.F) {
	for _, p := range hpackSeeds {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		blocks := blocksOf(p)
		if diff := cmp.Diff(decodeTheirs(blocks), decodeOurs(blocks)); diff != "" {
			t.Errorf("the library's and ours (-/+):\n%s", diff)
		}
	})
}

// TestDecoderEvicts fills the table many times over.
func TestDecoderEvicts(t *testing.T) {
	var e encoder
	var blocks [][]byte
	for i := range 3000 {
		e.begin(nil)
		for _, f := range [][2]string{{"same", "one"}, {"x-n", string(rune('a' + i%200))}, {"x-long", string(bytes.Repeat([]byte{'v'}, i%400))}, {"x-n", string(rune('a' + i%200))}} {
			e.field(f[0], f[1])
		}
		blocks = append(blocks, bytes.Clone(e.out[frameHeaderLen:]))
	}
	if diff := cmp.Diff(decodeTheirs(blocks), decodeOurs(blocks)); diff != "" {
		t.Errorf("the library's and ours (-/+):\n%s", diff)
	}
}
