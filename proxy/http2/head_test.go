package http2

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

func TestRequestHead(t *testing.T) {
	tests := []struct {
		name   string
		nv     []string
		want   string
		length int64
	}{
		{"plain", with(get, "a", "1", "a", "2"), "GET http://a.test/ a=1 a=2", -1},
		{"length", with(post, "content-length", "5"), "POST http://a.test/ content-length=5", 5},
		{"host is the authority", with(get[:6], "host", "b.test:8080"), "GET http://b.test:8080/", -1},
		{"cookie crumbs", with(get, "cookie", "a=1", "b", "2", "cookie", "c=3"), "GET http://a.test/ b=2 cookie=a=1; c=3", -1},
		{"te", with(get, "te", "trailers"), "GET http://a.test/ te=trailers", -1},
		{"tunnel", []string{":method", "CONNECT", ":authority", "10.0.0.1:80", "content-length", "7"}, "CONNECT ://10.0.0.1:80", -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, Config{})
			b.feed(rawHeaders(1, false, tt.nv...))
			if len(b.reqs) != 1 {
				t.Fatal("no request")
			}
			h := &b.reqs[0].head
			if got := describe(h); got != tt.want || h.ContentLength != tt.length || h.Upgrade {
				t.Errorf("got %q, length %d", got, h.ContentLength)
			}
		})
	}
}

// encoded decodes what an encoder makes, with "!" before never-indexed fields.
func encoded(t *testing.T, e *encoder, d *hpack.Decoder, f func(e *encoder)) []string {
	t.Helper()
	e.begin(nil)
	e.out = e.out[frameHeaderLen:]
	f(e)
	fields, err := d.DecodeFull(e.out)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range fields {
		got = append(got, f.Name+"="+f.Value)
	}
	return got
}

func TestEncodeRequest(t *testing.T) {
	upgrade := request("GET", "/chat", "Upgrade", "websocket", "Connection", "upgrade", "Content-Length", "0")
	upgrade.Upgrade = true
	bare := request("GET", "/")
	bare.Reset()
	bare.SetMethodString("GET")
	sized := request("POST", "/")
	sized.ContentLength = 12
	stated := request("POST", "/", "Content-Length", "7")
	stated.ContentLength = 7
	tests := []struct {
		name string
		head *stream.Head
		want []string
	}{
		{
			"names in lower case, forbidden ones dropped",
			request("GET", "/x", "X-Forwarded-For", "1", "Connection", "close", "Keep-Alive", "5", "Proxy-Connection", "x",
				"Transfer-Encoding", "chunked", "Upgrade", "h2c", "HTTP2-Settings", "x", "TE", "gzip", "Host", "b.test", "Accept", "*/*"),
			[]string{":method=GET", ":scheme=http", ":path=/x", ":authority=a.test", "x-forwarded-for=1", "accept=*/*"},
		},
		{"te: trailers stays", request("GET", "/", "TE", "Trailers"), []string{":method=GET", ":scheme=http", ":path=/", ":authority=a.test", "te=Trailers"}},
		{"defaults", bare, []string{":method=GET", ":scheme=https", ":path=/"}},
		{"length from the head", sized, []string{":method=POST", ":scheme=http", ":path=/", ":authority=a.test", "content-length=12"}},
		{"length from the field", stated, []string{":method=POST", ":scheme=http", ":path=/", ":authority=a.test", "content-length=7"}},
		{"tunnel", request("CONNECT", "", "Content-Length", "1"), []string{":method=CONNECT", ":authority=a.test"}},
		{"upgrade", upgrade, []string{":method=CONNECT", ":protocol=websocket", ":scheme=http", ":path=/chat", ":authority=a.test"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := hpack.NewDecoder(4096, nil)
			got := encoded(t, new(encoder), d, func(e *encoder) { e.request(tt.head, "https") })
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEncodeResponse(t *testing.T) {
	d := hpack.NewDecoder(4096, nil)
	got := encoded(t, new(encoder), d, func(e *encoder) { e.response(response(103, "Link", "x"), false) })
	if diff := cmp.Diff([]string{":status=103", "link=x"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestEncoderTable: the first time a field is literal, the second time it
// enters the table, from then on it is one byte; secrets never are.
func TestEncoderTable(t *testing.T) {
	e, d := new(encoder), hpack.NewDecoder(4096, nil)
	h := response(200, "server", "lateen", "set-cookie", "secret=1")
	want := []string{":status=200", "server=lateen", "set-cookie=secret=1"}
	var sizes []int
	for range 4 {
		got := encoded(t, e, d, func(e *encoder) { e.response(h, false) })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		sizes = append(sizes, len(e.out))
	}
	secret := len("\x1f\x28\x08secret=1")
	if sizes[2] != 2+secret || sizes[3] != sizes[2] || sizes[0] <= sizes[2] {
		t.Errorf("sizes are %d, a secret is %d", sizes, secret)
	}
}

// TestEncoderTableSize obeys SETTINGS_HEADER_TABLE_SIZE, also when it is 0 and comes back.
func TestEncoderTableSize(t *testing.T) {
	d := newDesk(t, Config{})
	dec := hpack.NewDecoder(4096, func(hpack.HeaderField) {})
	for _, size := range []uint32{4096, 0, 0, 100, 1 << 20, 4096} {
		d.feed(rawSettings(setting(settingTableSize, size)))
		dec.SetAllowedMaxDynamicTableSize(size)
		for range 3 {
			d.frames()
			d.open(request("GET", "/", "user-agent", "test"), true)
			fs := only(d.frames(), frameHeaders)
			if _, err := dec.DecodeFull(fs[0].payload); err != nil {
				t.Fatalf("table of %d bytes: %v", size, err)
			}
			d.feed(rawHeaders(fs[0].stream, true, status200...))
		}
	}
}

// TestBlockSplit: heads beyond the peer's frame size go out as CONTINUATION.
func TestBlockSplit(t *testing.T) {
	d := newDesk(t, Config{})
	value := strings.Repeat("~", 30000)
	d.open(request("GET", "/", "a", value, "b", value), true)
	fs := d.frames()
	if len(fs) != 4 || fs[0].flags != flagEndStream || fs[3].flags != flagEndHeaders {
		t.Fatalf("%d frames, flags %x to %x", len(fs), fs[0].flags, fs[len(fs)-1].flags)
	}
	var whole []byte
	for i, f := range fs {
		if f.length > maxFrameSize || (i > 0) != (f.typ == frameContinuation) {
			t.Errorf("frame %d is %+v", i, f.frameHeader)
		}
		whole = append(whole, f.payload...)
	}
	fields, err := hpack.NewDecoder(4096, nil).DecodeFull(whole)
	if err != nil || len(fields) != 6 || fields[5].Value != value {
		t.Fatalf("%d fields, %v", len(fields), err)
	}
}

// TestDecoderTable: the dynamic table stays right over heads that are refused, discarded or too large.
func TestDecoderTable(t *testing.T) {
	b := newBed(t, Config{HeadBytesMax: 500})
	var buf strings.Builder
	e := hpack.NewEncoder(&buf)
	send := func(id uint32, nv ...string) {
		buf.Reset()
		for i := 0; i < len(nv); i += 2 {
			if err := e.WriteField(hpack.HeaderField{Name: nv[i], Value: nv[i+1]}); err != nil {
				t.Fatal(err)
			}
		}
		b.feed(raw(frameHeaders, flagEndHeaders|flagEndStream, id, buf.String()))
	}
	send(1, with(get, "Bad", "1", "seen-when-malformed", "1")...)
	send(3, with(get, "large", strings.Repeat("x", 500), "seen-when-large", "2")...)
	send(3, "seen-when-late", "3")
	send(5, with(get, "seen-when-malformed", "1", "seen-when-large", "2", "seen-when-late", "3")...)
	if b.conn.closed || len(b.reqs) != 1 {
		t.Fatalf("%d requests, closed %v: %v", len(b.reqs), b.conn.closed, b.s.Err())
	}
	want := "GET http://a.test/ seen-when-malformed=1 seen-when-large=2 seen-when-late=3"
	if got := describe(&b.reqs[0].head); got != want {
		t.Errorf("got %q", got)
	}
}

// TestUpgrade: extended CONNECT is HTTP/1.1's upgrade to both Receivers (RFC 8441).
func TestUpgrade(t *testing.T) {
	b := newBed(t, Config{ExtendedConnect: true})
	b.feed(rawHeaders(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/chat", ":authority", "a.test", "sec-websocket-version", "13"))
	r := b.reqs[0]
	if got := describe(&r.head); got != "GET https://a.test/chat sec-websocket-version=13 upgrade=websocket" || !r.head.Upgrade {
		t.Errorf("the request is %q, upgrade %v", got, r.head.Upgrade)
	}
	h := response(101, "upgrade", "websocket", "connection", "upgrade")
	h.Upgrade = true
	r.s.SendHead(h, false)
	r.s.SendData([]byte("hi"), false)
	r.s.SendTrailers(response(0, "a", "b")) // a tunnel has none
	fs := b.frames()
	fields, err := hpack.NewDecoder(4096, nil).DecodeFull(fs[0].payload)
	if err != nil || len(fields) != 1 || fields[0].Value != "200" {
		t.Errorf("the response is %v, %v", fields, err)
	}
	if len(fs) != 3 || fs[2].typ != frameData || fs[2].flags != flagEndStream {
		t.Errorf("wrote %+v", fs)
	}
}

func TestClientUpgrade(t *testing.T) {
	h := request("GET", "/chat", "upgrade", "websocket")
	h.Upgrade = true
	d := newDesk(t, Config{})
	if offered, known := d.c.Upgrades(); offered || !known {
		t.Errorf("offered %v, known %v", offered, known)
	}
	if r := d.open(h, false); r.why != stream.AbortRefused || len(d.frames()) != 0 || d.c.Available() != 1000 {
		t.Errorf("not offered: %v", r.log)
	}

	d = newDesk(t, Config{}, setting(settingExtendedConnect, 1))
	if offered, known := d.c.Upgrades(); !offered || !known {
		t.Errorf("offered %v, known %v", offered, known)
	}
	yes, no := d.open(h, false), d.open(h, false)
	d.feed(rawHeaders(1, false, status200...), rawData(1, false, "hi"), rawHeaders(3, true, ":status", "403"))
	if diff := cmp.Diff([]string{"head 101 upgrade=websocket", "data 2"}, yes.log); diff != "" || !yes.head.Upgrade {
		t.Errorf("accepted, upgrade %v: %s", yes.head.Upgrade, diff)
	}
	if diff := cmp.Diff([]string{"head 403 end"}, no.log); diff != "" || no.head.Upgrade {
		t.Errorf("refused, upgrade %v: %s", no.head.Upgrade, diff)
	}
}

// TestClientUpgradeWaits: a request to upgrade waits until the server's SETTINGS say whether it takes one, and what is
// given to it meanwhile goes out after it.
func TestClientUpgradeWaits(t *testing.T) {
	h := request("GET", "/chat", "upgrade", "websocket")
	h.Upgrade = true
	tests := []struct {
		name    string
		offers  []string
		between func(s stream.Sender)
		want    []string // the frames on the stream
		why     stream.Abort
	}{
		{"offered", []string{setting(settingExtendedConnect, 1)}, func(stream.Sender) {}, []string{"head"}, stream.AbortNone},
		{"with data", []string{setting(settingExtendedConnect, 1)}, func(s stream.Sender) { s.SendData([]byte("hi"), false) }, []string{"head", "data hi"}, stream.AbortNone},
		{"with data and the end", []string{setting(settingExtendedConnect, 1)}, func(s stream.Sender) {
			s.SendData([]byte("hi"), false)
			s.SendData(nil, true)
		}, []string{"head", "data hi end"}, stream.AbortNone},
		{"with the end", []string{setting(settingExtendedConnect, 1)}, func(s stream.Sender) { s.SendTrailers(response(0)) }, []string{"head", "data  end"}, stream.AbortNone},
		{"given up", []string{setting(settingExtendedConnect, 1)}, func(s stream.Sender) { s.Reset(stream.AbortLocal) }, nil, stream.AbortNone},
		{"not offered", nil, func(s stream.Sender) { s.SendData([]byte("hi"), true) }, nil, stream.AbortRefused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := bareDesk(t, Config{})
			d.conn.out = nil
			r := d.open(h, false)
			tt.between(r.s)
			if fs := d.frames(); len(fs) != 0 || d.c.Active() > 1 {
				t.Fatalf("sent before the SETTINGS: %+v", fs)
			}
			d.feed(rawSettings(tt.offers...), raw(frameSettings, flagAck, 0, ""))
			var got []string
			for _, f := range d.frames() {
				switch f.typ {
				case frameHeaders:
					got = append(got, "head")
				case frameData:
					got = append(got, "data "+string(f.payload)+endMark(f.flags&flagEndStream != 0))
				}
				if f.stream > 1 {
					t.Errorf("a frame of stream %d", f.stream)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || r.why != tt.why {
				t.Errorf("aborted %v; frames: %s", r.why, diff)
			}
			if want := len(tt.want); (d.c.Active() == 1) != (want > 0) {
				t.Errorf("%d open", d.c.Active())
			}
		})
	}
}
