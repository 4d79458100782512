package http2

import (
	"encoding/binary"
	"math/bits"
)

// encoder turns fields into a header block, which grows in out. The zero value
// is ready; one that had no field to remember owns no table.
//
// Strings are written as they are, never in Huffman's code: what is worth
// shortening is in the table, and coding the rest costs both sides more time
// than the bytes that it saves (docs/decisions/005).
type encoder struct {
	out   []byte
	table *sendTable
	// resized: the peer's SETTINGS spoke of the table since the last block. wanted is the size that is in force from
	// the next block on, least the smallest that it had meanwhile.
	resized       bool
	wanted, least int
	// shrunk is how much smaller than hpackTableSize the peer knows the table to be, in bytes.
	shrunk int
	// lower is where names are made lower case and numbers are written.
	lower []byte
	// keepCase: names go out as they are.
	keepCase bool
}

// The first bits of a field's representation (RFC 7541 sections 6.1 to 6.3), and the largest value of the number in the
// rest of that byte.
const (
	formIndexed, maxIndexed = 0x80, 0x7f
	formAdded, maxAdded     = 0x40, 0x3f // literal, added to the dynamic table
	formResize, maxResize   = 0x20, 0x1f
	formPlain, maxPlain     = 0x00, 0x0f // literal, not added
	formNever               = 0x10       // ... and nobody who passes it on may
	maxLength               = 0x7f       // of a string, after the bit for Huffman's code
)

// setTableSize obeys the peer's SETTINGS_HEADER_TABLE_SIZE, up to hpackTableSize.
func (e *encoder) setTableSize(n uint32) {
	size := int(min(n, hpackTableSize))
	if !e.resized {
		e.resized, e.least = true, size
	}
	e.wanted, e.least = size, min(e.least, size)
}

// tableSize is what the peer believes that our table's is.
func (e *encoder) tableSize() int { return hpackTableSize - e.shrunk }

// begin starts a block in buf, which is overwritten, after room for a frame's header.
func (e *encoder) begin(buf []byte) {
	var room [frameHeaderLen]byte
	e.out = append(buf[:0], room[:]...)
	if e.resized {
		e.resize()
	}
	if e.table != nil {
		e.table.at = blockStart
	}
}

// resize tells the peer the table's new size. If it was to be smaller meanwhile, that comes first (RFC 7541 section
// 4.2): as 0, since Go's decoder takes a second size only when its table is empty.
func (e *encoder) resize() {
	e.resized = false
	if e.least < min(e.wanted, e.tableSize()) {
		e.sayTableSize(0)
	}
	if e.wanted != e.tableSize() {
		e.sayTableSize(e.wanted)
	}
}

func (e *encoder) sayTableSize(n int) {
	e.shrunk = hpackTableSize - n
	e.out = appendNumber(e.out, formResize, maxResize, n)
	if e.table != nil {
		e.table.shrinkTo(n)
	}
}

// field appends a field; name is in lower case. Neither string is kept.
func (e *encoder) field(name, value string) {
	if !e.foreseen(name, value) {
		e.known(nameTable.at(name), name, value)
	}
}

// foreseen appends a field if it is the one that followed the one before when that was last sent: heads resemble one
// another.
func (e *encoder) foreseen(name, value string) bool {
	if e.table == nil {
		return false
	}
	i := e.table.foresee(name, value)
	if i > 0 {
		e.out = appendNumber(e.out, formIndexed, maxIndexed, i)
	}
	return i > 0
}

// known appends a field of whose name n is known.
func (e *encoder) known(n *knownName, name, value string) {
	if i, ok := n.entry(value); ok {
		e.out = append(e.out, formIndexed|i)
		return
	}
	fits := len(name)+len(value) <= min(indexedMax, e.tableSize()-fieldOverhead)
	switch {
	case n.use == useSecret:
		e.literal(formNever, maxPlain, int(n.first), name, value)
	case !fits || n.use == useLength || n.use == useOnce && n.first > 0:
		e.literal(formPlain, maxPlain, int(n.first), name, value)
	default:
		e.remembered(n, name, value)
	}
}

// remembered appends a field that the dynamic table may know, or its name; a useOnce one only for its name.
func (e *encoder) remembered(n *knownName, name, value string) {
	if e.table == nil {
		e.table = new(sendTable)
	}
	t := e.table
	var field, same *seenField
	if n.use != useOnce {
		field = t.find(name, value)
		if i := t.index(field); i > 0 {
			t.passed(field.entry)
			e.out = appendNumber(e.out, formIndexed, maxIndexed, i)
			return
		}
	}
	index := int(n.first)
	if index == 0 {
		same = t.findName(name)
		index = t.index(same)
	}
	if field == nil && (n.use != useOnce || same == nil || index > 0) {
		e.literal(formPlain, maxPlain, index, name, value)
		return
	}
	e.literal(formAdded, maxAdded, index, name, value)
	entry := t.add(name, value, e.tableSize())
	if field != nil {
		field.entry = entry
		t.passed(entry)
	}
	if same != nil {
		same.entry = entry
	}
}

// literal appends a field whose name is that of an entry, or is written if index is 0.
func (e *encoder) literal(form byte, limit, index int, name, value string) {
	e.out = appendNumber(e.out, form, limit, index)
	if index == 0 {
		e.out = appendText(e.out, name)
	}
	e.out = appendText(e.out, value)
}

// appendNumber appends a number in the rest of a byte that begins with form, and as many more as it takes (RFC 7541
// section 5.1).
func appendNumber(b []byte, form byte, limit, n int) []byte {
	if n < limit {
		return append(b, form|byte(n))
	}
	b = append(b, form|byte(limit))
	return binary.AppendUvarint(b, uint64(n-limit))
}

func appendText(b []byte, s string) []byte {
	return append(appendNumber(b, 0, maxLength, len(s)), s...)
}

const (
	// indexedMax is the longest field, name and value together, that may enter the dynamic table.
	indexedMax = 512
	// entriesMax is how many fields are in a table at most: each counts fieldOverhead bytes and more.
	entriesMax = hpackTableSize / fieldOverhead
	// tableBytes holds the bytes of all of them. What is left at its end when a field does not fit there, less than
	// indexedMax, is lost until the fields after it have left.
	tableBytes = hpackTableSize + indexedMax
	// seenSets times seenWays fields are remembered, to find them and to tell which ones come again; and as many names
	// as nameSets.
	seenSets, seenWays = 64, 4
	nameSets           = 32
	// blockStart stands for an entry before the first one of a block.
	blockStart = entriesMax
)

// sendTable is the dynamic table of an encoder: a ring of entries, and a ring of the bytes of their fields.
//
// A field enters it when it comes for the second time: what differs from message to message, as paths may, does not
// push out what repeats. A field whose value is known to differ enters it for its name. seen and names tell what has
// come before, and where it is. They are caches: what they have forgotten is written, and perhaps added, as if it were
// new.
type sendTable struct {
	entries     [entriesMax]sendEntry
	added, gone uint32 // how many entries ever entered and left, modulo 2^32: the last added is the one of that number
	size        int    // as RFC 7541 section 4.1 counts
	next        int    // where in text the next entry goes
	// followers are where in entries the field stands that followed an entry in its last block; at is the entry that was
	// passed last in this block. The one after the others is for the block's start.
	followers [entriesMax + 1]uint8
	at        uint8
	seen      [seenSets][seenWays]seenField
	names     [nameSets]seenField
	text      [tableBytes]byte
}

// sendEntry is a field: a name and a value that follow one another in sendTable.text.
type sendEntry struct{ at, name, value uint16 }

// seenField is a field, or a name, that has come before. entry is the number of one that was added to the table with
// it, and may have left; 0 if there was none.
type seenField struct{ hash, entry uint32 }

// find returns what is known of a field, and nil if it is new. An entry of it that is in the table is the field.
func (t *sendTable) find(name, value string) *seenField {
	h := hashField(name, value)
	set := &t.seen[h%seenSets]
	for i := range set {
		s := &set[i]
		if s.hash != h || t.holds(s) && !t.is(s.entry, name, value) {
			continue
		}
		if i > 0 { // what comes often moves to the front, where new ones do not push it on
			set[i-1], set[i] = set[i], set[i-1]
			return &set[i-1]
		}
		return s
	}
	s := &set[0]
	if s.hash != 0 {
		copy(set[2:], set[1:])
		s = &set[1]
	}
	*s = seenField{hash: h}
	return nil
}

// findName does the same for a name.
func (t *sendTable) findName(name string) *seenField {
	h := hashField(name, "")
	s := &t.names[h%nameSets]
	if s.hash != h || t.holds(s) && !t.isName(s.entry, name) {
		*s = seenField{hash: h}
		return nil
	}
	return s
}

// foresee returns the index of a field if it is in the table and followed the last one before; otherwise 0.
func (t *sendTable) foresee(name, value string) int {
	place := uint32(t.followers[t.at])
	age := (t.added - place) % entriesMax
	if age >= t.added-t.gone || !t.is(place, name, value) {
		return 0
	}
	t.at = uint8(place)
	return len(staticTable) + int(age)
}

// passed notes that an entry was sent.
func (t *sendTable) passed(entry uint32) {
	place := uint8(entry % entriesMax)
	t.followers[t.at] = place
	t.at = place
}

// holds reports whether s has an entry that is in the table.
func (t *sendTable) holds(s *seenField) bool { return s.entry != 0 && t.added-s.entry < t.added-t.gone }

// index is that of an entry (RFC 7541 section 2.3.3); 0 if s has none in the table.
func (t *sendTable) index(s *seenField) int {
	if s == nil || !t.holds(s) {
		return 0
	}
	return len(staticTable) + int(t.added-s.entry)
}

func (t *sendTable) isName(entry uint32, name string) bool {
	e := &t.entries[entry%entriesMax]
	return string(t.text[e.at:e.at+e.name]) == name
}

func (t *sendTable) is(entry uint32, name, value string) bool {
	e := &t.entries[entry%entriesMax]
	if int(e.name) != len(name) || int(e.value) != len(value) {
		return false
	}
	at := int(e.at) + len(name)
	return string(t.text[e.at:at]) == name && string(t.text[at:at+len(value)]) == value
}

// add puts a field of at most indexedMax bytes, that is not too large for limit, into the table.
func (t *sendTable) add(name, value string, limit int) (entry uint32) {
	n := len(name) + len(value)
	t.shrinkTo(limit - n - fieldOverhead)
	if t.next+n > tableBytes {
		t.next = 0
	}
	t.added++
	t.entries[t.added%entriesMax] = sendEntry{uint16(t.next), uint16(len(name)), uint16(len(value))}
	copy(t.text[t.next:], name)
	copy(t.text[t.next+len(name):], value)
	t.next += n
	t.size += n + fieldOverhead
	return t.added
}

// shrinkTo lets the oldest entries go until size bytes are enough for the rest.
func (t *sendTable) shrinkTo(size int) {
	for t.size > size {
		t.gone++
		e := &t.entries[t.gone%entriesMax]
		t.size -= int(e.name) + int(e.value) + fieldOverhead
	}
}

// hashField looks at some bytes of a field only, since who finds it by this compares the whole. It is never 0.
func hashField(name, value string) uint32 {
	hi, lo := bits.Mul64(sample(name)^0x9e3779b97f4a7c15, sample(value)^0xd6e8feb86659fd93)
	return uint32(hi^lo) | 1<<31
}

// sample mixes the length, the beginning, the middle and the end of s.
func sample(s string) uint64 {
	n := len(s)
	switch {
	case n >= 8:
		hi, lo := bits.Mul64(load64(s, 0)^uint64(n), load64(s, n-8)^load64(s, (n-8)/2)^0xa0761d6478bd642f)
		return hi ^ lo
	case n >= 4:
		return uint64(load32(s, 0)) | uint64(load32(s, n-4))<<32 ^ uint64(n)
	case n > 0:
		return uint64(s[0]) | uint64(s[n/2])<<8 | uint64(s[n-1])<<16 | uint64(n)<<24
	}
	return 0
}

func load32(s string, i int) uint32 {
	s = s[i : i+4]
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

func load64(s string, i int) uint64 {
	s = s[i : i+8]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}
