package http2

// fieldUse is what an encoder does with a field of some name.
type fieldUse uint8

const (
	// useRepeats: the field enters the dynamic table when it comes for the second time.
	useRepeats fieldUse = iota
	// useOnce: the value differs from message to message, and so the field never enters it.
	useOnce
	// useSecret: the same, for all who pass the field on, so that nobody who shares a connection can guess the value
	// by its size (RFC 7541 section 7.1).
	useSecret
	// useHop: the field does not exist in HTTP/2, or is a pseudo-field there (RFC 9113 section 8.2.2).
	useHop
	// useTE: useHop, unless the value is "trailers".
	useTE
	// useLength: the message's length.
	useLength
)

// knownName is what an encoder knows of a field's name: the entries of the static table that have it, the first one to the
// last one, numbered as in RFC 7541 appendix A (0: there are none), and its use.
type knownName struct {
	text        string
	first, last uint8
	use         fieldUse
}

// nameSlots is the size of nameTable: some three times as much as there are names.
const nameSlots = 256

// names finds names by a hash; what a slot is taken for goes into the next one.
type names [nameSlots]knownName

var nameTable = newNames()

// uses are the names that are not used as all the others are.
var uses = [...][]string{
	useOnce:   {"date", "x-request-id", "traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"},
	useSecret: {"authorization", "cookie", "proxy-authorization", "set-cookie"},
	useHop:    {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "http2-settings", "host"},
	useTE:     {"te"},
	useLength: {"content-length"},
}

func newNames() *names {
	t := new(names)
	for i, f := range staticTable[1:] {
		n := t.at(f.name)
		if n.text == "" {
			n.text, n.first = f.name, uint8(i+1)
		}
		n.last = uint8(i + 1)
	}
	for use, list := range uses {
		for _, s := range list {
			n := t.at(s)
			n.text, n.use = s, fieldUse(use)
		}
	}
	return t
}

// at returns the slot of a name, or the empty one where it would be.
func (t *names) at(s string) *knownName {
	if s == "" {
		s = " " // which is no name
	}
	h := uint(len(s))*29 + uint(s[0])*7 + uint(s[len(s)/2])*41 + uint(s[len(s)-1])*11
	for {
		n := &t[h%nameSlots]
		if n.text == s || n.text == "" {
			return n
		}
		h++
	}
}

// inCase is what is known of the name where it is not written in lower case, as the entries of the static table are.
func (n *knownName) inCase() *knownName { return &mixedNames[n.use] }

// mixedNames are names of each use that are not in the static table.
var mixedNames = [...]knownName{
	useRepeats: {use: useRepeats}, useOnce: {use: useOnce}, useSecret: {use: useSecret}, useHop: {use: useHop}, useTE: {use: useTE},
	useLength: {use: useLength},
}

// entry returns the number of the static table's entry for a name's field, if it has one with that value.
func (n *knownName) entry(value string) (index uint8, ok bool) {
	for i := n.first; i <= n.last && i > 0; i++ {
		if staticTable[i].value == value {
			return i, true
		}
	}
	return 0, false
}

// staticTable is RFC 7541 appendix A; entry 0 does not exist.
var staticTable = [...]struct{ name, value string }{
	{},
	{":authority", ""},
	{":method", "GET"},
	{":method", "POST"},
	{":path", "/"},
	{":path", "/index.html"},
	{":scheme", "http"},
	{":scheme", "https"},
	{":status", "200"},
	{":status", "204"},
	{":status", "206"},
	{":status", "304"},
	{":status", "400"},
	{":status", "404"},
	{":status", "500"},
	{"accept-charset", ""},
	{"accept-encoding", "gzip, deflate"},
	{"accept-language", ""},
	{"accept-ranges", ""},
	{"accept", ""},
	{"access-control-allow-origin", ""},
	{"age", ""},
	{"allow", ""},
	{"authorization", ""},
	{"cache-control", ""},
	{"content-disposition", ""},
	{"content-encoding", ""},
	{"content-language", ""},
	{"content-length", ""},
	{"content-location", ""},
	{"content-range", ""},
	{"content-type", ""},
	{"cookie", ""},
	{"date", ""},
	{"etag", ""},
	{"expect", ""},
	{"expires", ""},
	{"from", ""},
	{"host", ""},
	{"if-match", ""},
	{"if-modified-since", ""},
	{"if-none-match", ""},
	{"if-range", ""},
	{"if-unmodified-since", ""},
	{"last-modified", ""},
	{"link", ""},
	{"location", ""},
	{"max-forwards", ""},
	{"proxy-authenticate", ""},
	{"proxy-authorization", ""},
	{"range", ""},
	{"referer", ""},
	{"refresh", ""},
	{"retry-after", ""},
	{"server", ""},
	{"set-cookie", ""},
	{"strict-transport-security", ""},
	{"transfer-encoding", ""},
	{"user-agent", ""},
	{"vary", ""},
	{"via", ""},
	{"www-authenticate", ""},
}
