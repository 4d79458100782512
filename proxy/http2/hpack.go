package http2

import (
	"errors"
	"unsafe"

	"golang.org/x/net/http2/hpack"
)

// hpackTableSize bounds the dynamic tables of both directions, in bytes: the initial value, never raised.
const hpackTableSize = 4096

// What can be wrong with a header block; each leaves the dynamic table undefined.
var (
	errBlockEnd    = errors.New("hpack: the block ends within a field")
	errNumber      = errors.New("hpack: a number is too large")
	errIndex       = errors.New("hpack: no entry has this index")
	errTableSize   = errors.New("hpack: the table is made larger than allowed, or not at the block's start")
	errHuffmanCode = errors.New("hpack: a string is no Huffman code")
)

// decoder turns header blocks (RFC 7541) into fields, without allocating but for what enters the dynamic table, which is
// what repeats. Huffman's code is read with a library, of which this file alone knows. The zero value is ready; one
// that had no field to remember owns no table.
type decoder struct {
	table *recvTable
	// shrunk is how much smaller than hpackTableSize the peer made the table, in bytes.
	shrunk int
	// While a block is read: what is left of it, and who takes its fields.
	rest []byte
	to   *headReader
	deaf bool // to wants no more of them
}

// recvTable is the dynamic table of a decoder: a ring, in which the last entry was added as the one of number added.
type recvTable struct {
	entries     [entriesMax]recvEntry
	added, gone uint // how many entries ever entered and left
	size        int  // as RFC 7541 section 4.1 counts
}

type recvEntry struct{ name, value string }

// decode gives the fields of a whole block to to, until it refuses one; the
// dynamic table is kept right to the end. An error leaves the table undefined.
// What to is given is valid until block changes.
func (d *decoder) decode(block []byte, to *headReader) error {
	d.rest, d.to, d.deaf = block, to, false
	var err error
	for first := true; len(d.rest) > 0 && err == nil; first = false {
		switch b := d.rest[0]; {
		case b&formIndexed != 0:
			err = d.indexed()
		case b&formAdded != 0:
			err = d.literal(maxAdded, true)
		case b&formResize != 0:
			err = d.resize(first)
		default:
			err = d.literal(maxPlain, false)
		}
	}
	d.rest, d.to = nil, nil
	return err
}

func (d *decoder) indexed() error {
	i, err := d.number(maxIndexed)
	if err != nil {
		return err
	}
	f, ok := d.at(i)
	if !ok {
		return errIndex
	}
	d.emit(f.name, f.value)
	return nil
}

// literal reads a field whose value is written, and its name if its index is 0. added: it enters the table.
func (d *decoder) literal(limit uint64, added bool) error {
	i, err := d.number(limit)
	if err != nil {
		return err
	}
	f, ok := d.at(i)
	switch {
	case i == 0:
		if f.name, err = d.text(added); err != nil {
			return err
		}
	case !ok:
		return errIndex
	}
	if f.value, err = d.text(added); err != nil {
		return err
	}
	if added {
		d.add(f)
	}
	d.emit(f.name, f.value)
	return nil
}

// resize obeys a change of the table's size, which comes before the fields of a block (RFC 7541 section 4.2); where the
// table is empty it does no harm later.
func (d *decoder) resize(first bool) error {
	n, err := d.number(maxResize)
	if err != nil {
		return err
	}
	if n > hpackTableSize || !first && d.table != nil && d.table.size > 0 {
		return errTableSize
	}
	d.shrunk = hpackTableSize - int(n)
	if d.table != nil {
		d.table.shrinkTo(int(n))
	}
	return nil
}

func (d *decoder) emit(name, value string) {
	if !d.deaf && !d.to.field(name, value) {
		d.deaf = true
	}
}

// number reads a number that begins in the last bits of the next byte, those of limit (RFC 7541 section 5.1).
func (d *decoder) number(limit uint64) (uint64, error) {
	if len(d.rest) == 0 {
		return 0, errBlockEnd
	}
	n := uint64(d.rest[0]) & limit
	d.rest = d.rest[1:]
	if n < limit {
		return n, nil
	}
	for shift := 0; shift < 63; shift += 7 {
		if len(d.rest) == 0 {
			return 0, errBlockEnd
		}
		b := d.rest[0]
		d.rest = d.rest[1:]
		n += uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, nil
		}
	}
	return 0, errNumber
}

// text reads a string (RFC 7541 section 5.2). Where nobody wants it, it is only passed over.
func (d *decoder) text(wanted bool) (string, error) {
	if len(d.rest) == 0 {
		return "", errBlockEnd
	}
	coded := d.rest[0]&0x80 != 0
	n, err := d.number(maxLength)
	if err != nil {
		return "", err
	}
	if n > uint64(len(d.rest)) {
		return "", errBlockEnd
	}
	p := d.rest[:n]
	d.rest = d.rest[n:]
	if !coded || d.deaf && !wanted {
		return view(p), nil
	}
	start := len(d.to.plain)
	if _, err := hpack.HuffmanDecode(&d.to.plain, p); err != nil {
		return "", errHuffmanCode
	}
	return view(d.to.plain[start:]), nil
}

// plainText is where strings stand that came in Huffman's code, until the next block.
type plainText []byte

func (t *plainText) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	return len(p), nil
}

// at returns the entry of an index (RFC 7541 section 2.3.3).
func (d *decoder) at(i uint64) (recvEntry, bool) {
	switch {
	case i == 0:
		return recvEntry{}, false
	case i < uint64(len(staticTable)):
		f := &staticTable[i]
		return recvEntry{f.name, f.value}, true
	case d.table == nil || i-uint64(len(staticTable)) >= uint64(d.table.added-d.table.gone):
		return recvEntry{}, false
	}
	return d.table.entries[(d.table.added-uint(i)+uint(len(staticTable)))%entriesMax], true
}

// add puts a copy of f into the table; one that is too large for it empties it (RFC 7541 section 4.4).
func (d *decoder) add(f recvEntry) {
	if d.table == nil {
		d.table = new(recvTable)
	}
	t := d.table
	limit, size := hpackTableSize-d.shrunk, len(f.name)+len(f.value)+fieldOverhead
	if size > limit {
		t.shrinkTo(0)
		return
	}
	// Adding the strings would not copy the one if the other is empty.
	both := view(append(append(make([]byte, 0, len(f.name)+len(f.value)), f.name...), f.value...))
	t.shrinkTo(limit - size)
	t.added++
	t.entries[t.added%entriesMax] = recvEntry{both[:len(f.name)], both[len(f.name):]}
	t.size += size
}

// shrinkTo lets the oldest entries go until size bytes are enough for the rest.
func (t *recvTable) shrinkTo(size int) {
	for t.size > max(size, 0) {
		t.gone++
		e := &t.entries[t.gone%entriesMax]
		t.size -= len(e.name) + len(e.value) + fieldOverhead
		*e = recvEntry{}
	}
}

// view returns p as a string that changes when p does.
func view(p []byte) string { return unsafe.String(unsafe.SliceData(p), len(p)) }
