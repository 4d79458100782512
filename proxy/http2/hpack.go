package http2

import (
	"hash/maphash"
	"strings"
	"unsafe"

	"golang.org/x/net/http2/hpack"
)

// This file is the only one that knows whose HPACK (RFC 7541) we use.

const (
	// hpackTableSize bounds the dynamic tables of both directions, in bytes: the initial value, never raised.
	hpackTableSize = 4096
	// indexedMax is the longest field, name and value together, that may take part of the peer's dynamic table.
	indexedMax = 1024
	// seenSets times two fields are remembered per connection to tell which ones come again.
	seenSets = 32
)

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

// encoder turns fields into a header block, which grows in out.
//
// A field is put into the dynamic table when it is seen for the second time:
// what differs from message to message (paths, request ids, dates) does not
// push out what repeats, and only what repeats is ever made a string.
type encoder struct {
	hp   *hpack.Encoder
	out  []byte
	seed maphash.Seed
	seen *[seenSets][2]seenField
	// lower is where names are made lower case and numbers are written.
	lower []byte
}

// seenField is a field that was sent; name and value are empty when that was only once.
type seenField struct {
	hash        uint64
	name, value string
}

// Write appends to out; it is there for the hpack package.
func (e *encoder) Write(p []byte) (int, error) {
	e.out = append(e.out, p...)
	return len(p), nil
}

func (e *encoder) init() {
	if e.hp == nil {
		e.hp = hpack.NewEncoder(e)
		e.seed = maphash.MakeSeed()
		e.seen = new([seenSets][2]seenField)
	}
}

// setTableSize obeys the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *encoder) setTableSize(n uint32) {
	e.init()
	e.hp.SetMaxDynamicTableSize(min(n, hpackTableSize))
}

// field appends a field; name is in lower case. Both may be views of bytes
// that change later: with Sensitive set the hpack package keeps neither.
func (e *encoder) field(name, value string) {
	f := hpack.HeaderField{Name: name, Value: value, Sensitive: true}
	if len(name)+len(value) <= indexedMax && !secret(name) {
		if s := e.again(name, value); s != nil {
			f = hpack.HeaderField{Name: s.name, Value: s.value}
		}
	}
	_ = e.hp.WriteField(f) // only Write above could fail
}

// again returns the field with strings of its own if it was sent before, and remembers it.
func (e *encoder) again(name, value string) *seenField {
	h := maphash.String(e.seed, name)*31 + maphash.String(e.seed, value)
	set := &e.seen[h%seenSets]
	for i := range set {
		s := &set[i]
		if s.hash != h {
			continue
		}
		if s.name == "" {
			s.name, s.value = strings.Clone(name), strings.Clone(value)
		} else if s.name != name || s.value != value {
			continue
		}
		if i == 1 {
			set[0], set[1] = set[1], set[0]
		}
		return &set[0]
	}
	set[0], set[1] = seenField{hash: h}, set[0]
	return nil
}

// view returns p as a string that changes when p does.
func view(p []byte) string { return unsafe.String(unsafe.SliceData(p), len(p)) }

// secret tells the fields that are never put into a table, so that nobody who
// shares the connection can guess them by size (RFC 7541 section 7.1).
func secret(name string) bool {
	switch name {
	case "authorization", "cookie", "proxy-authorization", "set-cookie":
		return true
	}
	return false
}
