// Package stream is the meeting place of the HTTP codecs and the relay: the
// neutral message head and the two small interfaces through which a codec and
// its user tell one another what arrived and what to send.
//
// In: nothing; it is vocabulary. Out: Head, Receiver, Sender. It must not know
// sockets, routes or versions of HTTP. Everything belongs to one loop; nothing
// here may be used from two goroutines at once.
package stream

// span is a range of Head.buf.
type span struct{ off, end uint32 }

// field is one field. line tells that its whole line, "name: value" with its end, stands in the buffer from the name on.
type field struct {
	name, value span
	line        bool
}

// Head is the head of an HTTP message, or its trailers, whatever the version:
// pseudo-header values and the other fields in order of arrival. Bytes live in
// one buffer that is reused, so a Head that has grown to its working size
// allocates nothing. Names keep the case in which they arrived and compare
// without regard to ASCII case (RFC 9110 section 5.1).
type Head struct {
	// Status is the response's status code; 0 for requests and trailers.
	Status int
	// Close reports that the peer wants the connection closed after this message (HTTP/1 only).
	Close bool
	// Upgrade reports a request to switch protocols (HTTP/1.1 Upgrade, or HTTP/2 extended CONNECT, RFC 8441),
	// or a 101 response; the protocol's name is the value of the Upgrade field.
	Upgrade bool
	// HTTP10 reports an HTTP/1.0 message.
	HTTP10 bool
	// ContentLength is the declared body length in bytes; -1 if unknown.
	ContentLength int64

	buf                             []byte
	fields                          []field
	names                           uint64 // the bits of the names that may be among the fields
	method, scheme, authority, path span
}

// nameBit is the bit that stands for a name, whatever its case: most questions are about fields that are not there,
// and are answered by it.
func nameBit(last byte, length int) uint64 { return 1 << ((uint(last|0x20)*3 + uint(length)) & 63) }

// Reset empties the head and keeps its memory, unless it has grown beyond 64 KiB.
func (h *Head) Reset() {
	if cap(h.buf) > 64<<10 {
		h.buf = nil
	}
	if cap(h.fields) > 256 {
		h.fields = nil
	}
	*h = Head{buf: h.buf[:0], fields: h.fields[:0], ContentLength: -1}
}

// Recycle is Reset where at most so many bytes are to be kept for the next message.
func (h *Head) Recycle(bytes int) {
	if len(h.buf) > bytes {
		*h = Head{}
	}
	h.Reset()
}

// Swap exchanges the contents of h and o, memory included.
func (h *Head) Swap(o *Head) { *h, *o = *o, *h }

// CopyFrom makes h a copy of o that shares no memory with it.
func (h *Head) CopyFrom(o *Head) {
	buf, fields := append(h.buf[:0], o.buf...), append(h.fields[:0], o.fields...)
	*h = *o
	h.buf, h.fields = buf, fields
}

func (h *Head) put(p []byte) span {
	off := uint32(len(h.buf))
	h.buf = append(h.buf, p...)
	return span{off, uint32(len(h.buf))}
}

func (h *Head) putString(s string) span {
	off := uint32(len(h.buf))
	h.buf = append(h.buf, s...)
	return span{off, uint32(len(h.buf))}
}

func (h *Head) at(s span) []byte { return h.buf[s.off:s.end:s.end] }

// Method is the request's method.
func (h *Head) Method() []byte { return h.at(h.method) }

// Scheme is the request's scheme, "http" or "https"; empty if the message did not say (HTTP/1 origin form).
func (h *Head) Scheme() []byte { return h.at(h.scheme) }

// Authority is the request's target host and optional port: :authority, or the Host field, which is not among the fields.
func (h *Head) Authority() []byte { return h.at(h.authority) }

// Path is the request's target path with its query ("*" for OPTIONS *; empty for CONNECT).
func (h *Head) Path() []byte { return h.at(h.path) }

// SetMethod copies p as the method.
func (h *Head) SetMethod(p []byte) { h.method = h.put(p) }

// SetScheme copies p as the scheme.
func (h *Head) SetScheme(p []byte) { h.scheme = h.put(p) }

// SetAuthority copies p as the authority.
func (h *Head) SetAuthority(p []byte) { h.authority = h.put(p) }

// SetPath copies p as the path.
func (h *Head) SetPath(p []byte) { h.path = h.put(p) }

// SetMethodString is SetMethod for a string.
func (h *Head) SetMethodString(s string) { h.method = h.putString(s) }

// SetSchemeString is SetScheme for a string.
func (h *Head) SetSchemeString(s string) { h.scheme = h.putString(s) }

// SetAuthorityString is SetAuthority for a string.
func (h *Head) SetAuthorityString(s string) { h.authority = h.putString(s) }

// SetPathString is SetPath for a string.
func (h *Head) SetPathString(s string) { h.path = h.putString(s) }

// Len is the number of fields.
func (h *Head) Len() int { return len(h.fields) }

// Size is the number of bytes held, dead ones included: what a limit on heads counts.
func (h *Head) Size() int { return len(h.buf) }

// At returns field i. The slices are valid until the head changes.
func (h *Head) At(i int) (name, value []byte) {
	f := h.fields[i]
	return h.at(f.name), h.at(f.value)
}

// Add appends a field, copying both.
func (h *Head) Add(name, value []byte) {
	n := h.put(name)
	h.append(field{name: n, value: h.put(value)})
}

// AddString appends a field.
func (h *Head) AddString(name, value string) {
	n := h.putString(name)
	h.append(field{name: n, value: h.putString(value)})
}

// AddLine appends the field of an HTTP/1.1 field line, its end included: a name of that many bytes, ": ", a value and
// CR LF. The caller answers for it that name and value are valid and that the field does not belong to the connection:
// Lines gives it back as it is.
func (h *Head) AddLine(line []byte, name int) {
	at := h.put(line)
	h.append(field{span{at.off, at.off + uint32(name)}, span{at.off + uint32(name) + 2, at.end - 2}, true})
}

// SetLine is Set for a field that is written as it is, like one that AddLine brought; the caller answers for the same.
func (h *Head) SetLine(name string, value []byte) {
	at := h.putString(name)
	h.buf = append(append(append(h.buf, ": "...), value...), "\r\n"...)
	end := uint32(len(h.buf)) - 2
	f := field{at, span{at.end + 2, end}, true}
	if h.mayHave(name) {
		if i := h.find(name, 0); i >= 0 {
			h.fields[i] = f
			h.del(name, i+1)
			return
		}
	}
	h.append(f)
}

func (h *Head) append(f field) {
	if f.name.end > f.name.off {
		h.names |= nameBit(h.buf[f.name.end-1], int(f.name.end-f.name.off))
	}
	h.fields = append(h.fields, f)
}

// Lines returns the lines of the fields from i on that AddLine brought, as long as they stand next to one another, and
// how many fields that is; 0 if field i came otherwise.
func (h *Head) Lines(i int) (lines []byte, n int) {
	if !h.fields[i].line {
		return nil, 0
	}
	all := span{h.fields[i].name.off, h.fields[i].value.end + 2}
	for n = 1; i+n < len(h.fields) && h.fields[i+n].line && h.fields[i+n].name.off == all.end; n++ {
		all.end = h.fields[i+n].value.end + 2
	}
	return h.at(all), n
}

// mayHave reports that a field of that name, which must be lower case, may be there; false is certain.
func (h *Head) mayHave(name string) bool {
	return len(name) > 0 && h.names&nameBit(name[len(name)-1], len(name)) != 0
}

// Get returns the value of the first field called name. name must be lower case.
func (h *Head) Get(name string) ([]byte, bool) {
	if !h.mayHave(name) {
		return nil, false
	}
	if i := h.find(name, 0); i >= 0 {
		return h.at(h.fields[i].value), true
	}
	return nil, false
}

// find is the index of the first field called name at or after from; -1 if there is none.
func (h *Head) find(name string, from int) int {
	for i := from; i < len(h.fields); i++ {
		if EqualFold(h.at(h.fields[i].name), name) {
			return i
		}
	}
	return -1
}

// Set replaces every field called name, which must be lower case, by one, keeping the first one's place.
func (h *Head) Set(name string, value []byte) {
	if h.mayHave(name) {
		if i := h.find(name, 0); i >= 0 {
			h.fields[i].value, h.fields[i].line = h.put(value), false
			h.del(name, i+1)
			return
		}
	}
	n := h.putString(name)
	h.append(field{name: n, value: h.put(value)})
}

// SetString is Set for a string.
func (h *Head) SetString(name, value string) {
	h.del(name, 0)
	h.AddString(name, value)
}

// Del removes every field called name, which must be lower case, and reports whether there was one.
func (h *Head) Del(name string) bool { return h.mayHave(name) && h.del(name, 0) }

func (h *Head) del(name string, from int) bool {
	first := h.find(name, from)
	if first < 0 {
		return false
	}
	kept := h.fields[:first]
	for _, f := range h.fields[first+1:] {
		if !EqualFold(h.at(f.name), name) {
			kept = append(kept, f)
		}
	}
	h.fields = kept
	return true
}

// EqualFold reports whether p equals s without regard to ASCII case. s must be lower case.
func EqualFold(p []byte, s string) bool {
	if len(p) != len(s) {
		return false
	}
	for i := range len(p) {
		c := p[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}
