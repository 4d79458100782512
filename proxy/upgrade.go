package proxy

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// The fields by which both ends of a WebSocket prove over HTTP/1.1 that they mean one (RFC 6455 section 4). Over HTTP/2
// :protocol says it, and there are none (RFC 8441 section 5): between the two a proxy makes up for the difference.
const (
	keyField    = "sec-websocket-key"
	acceptField = "sec-websocket-accept"
)

// acceptSalt is the constant of RFC 6455 section 1.3.
const acceptSalt = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// What a server can do wrong with an upgrade.
var (
	errAccept  = errors.New("the server's sec-websocket-accept does not answer the key")
	errContent = errors.New("the server answered a request to upgrade with success and no upgrade, which HTTP/2 cannot tell apart")
)

// askUpgrade makes a request to upgrade fit for the connection that it goes out on.
func (a *attempt) askUpgrade(h *stream.Head) {
	x := a.x
	if protocol, _ := h.Get("upgrade"); !stream.EqualFold(protocol, "websocket") {
		return
	}
	switch key, has := h.Get(keyField); {
	case a.conn.h2 != nil && x.d.h2 != nil:
		x.key = ""
		h.Del(keyField)
	case a.conn.h2 != nil:
		if has {
			x.key = string(key)
			h.Del(keyField)
		}
	case a.conn.h1 != nil && x.d.h2 != nil:
		var nonce [16]byte
		_, _ = rand.Read(nonce[:]) // never fails
		x.key = base64.StdEncoding.EncodeToString(nonce[:])
		h.SetString(keyField, x.key)
	case a.conn.h1 != nil && x.key != "": // an attempt before went out over HTTP/2
		h.SetString(keyField, x.key)
		x.key = ""
	}
}

// checkUpgrade judges the answer to a request to upgrade, and makes it fit for the client.
func (a *attempt) checkUpgrade(h *stream.Head) error {
	x := a.x
	switch {
	case h.Status != 101 && a.conn.h1 != nil && x.d.h2 != nil && h.Status >= 200 && h.Status < 300:
		return errContent
	case h.Status != 101 || x.key == "":
	case a.conn.h2 != nil:
		h.SetString(acceptField, acceptKey(x.key))
	default:
		if accept, _ := h.Get(acceptField); string(accept) != acceptKey(x.key) {
			return errAccept
		}
		h.Del(acceptField)
	}
	return nil
}

// acceptKey is the answer to a key (RFC 6455 section 4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + acceptSalt))
	return base64.StdEncoding.EncodeToString(sum[:])
}
