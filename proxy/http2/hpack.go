package http2

import (
	"unsafe"

	"golang.org/x/net/http2/hpack"
)

// HPACK (RFC 7541) is read with a library, of which this file alone knows, and written by the encoder of our own.

// hpackTableSize bounds the dynamic tables of both directions, in bytes: the initial value, never raised.
const hpackTableSize = 4096

// decoder turns header blocks into fields. The zero value is ready; an idle
// connection that never had a block owns no table.
type decoder struct {
	hp *hpack.Decoder
	to *headReader
}

// decode gives the fields of a whole block to to, until it refuses one; the
// dynamic table is kept right to the end. An error leaves the table undefined.
func (d *decoder) decode(block []byte, to *headReader) error {
	if d.hp == nil {
		d.hp = hpack.NewDecoder(hpackTableSize, d.emit)
	}
	d.to = to
	d.hp.SetEmitEnabled(true)
	_, err := d.hp.Write(block)
	if err == nil {
		err = d.hp.Close()
	}
	d.to = nil
	return err
}

func (d *decoder) emit(f hpack.HeaderField) {
	if !d.to.field(f.Name, f.Value) {
		d.hp.SetEmitEnabled(false)
	}
}

// view returns p as a string that changes when p does.
func view(p []byte) string { return unsafe.String(unsafe.SliceData(p), len(p)) }
