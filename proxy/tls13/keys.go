package tls13

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"fmt"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	ivBytes  = 12 // of every suite that we know
	tagBytes = 16
	// sealedMax is how many records one write key protects. RFC 8446 section 5.5 allows AES-GCM 2^24.5 full-sized ones;
	// ChaCha20-Poly1305 could go on, but changing its keys as seldom as this costs nothing.
	sealedMax = 1 << 24
)

// suite is a cipher suite of TLS 1.3 (RFC 8446 appendix B.4).
type suite struct {
	hash     func() hash.Hash
	keyBytes int
	aead     func(key []byte) (cipher.AEAD, error)
}

// suiteOf returns the suite that crypto/tls calls id; false if we do not have it.
func suiteOf(id uint16) (suite, bool) {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return suite{sha256.New, 16, newGCM}, true
	case tls.TLS_AES_256_GCM_SHA384:
		return suite{sha512.New384, 32, newGCM}, true
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		return suite{sha256.New, chacha20poly1305.KeySize, chacha20poly1305.New}, true
	}
	return suite{}, false
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
func expand(h func() hash.Hash, secret []byte, label string, size int) ([]byte, error) {
	const prefix = "tls13 "
	info := make([]byte, 0, 4+len(prefix)+len(label))
	info = append(info, byte(size>>8), byte(size), byte(len(prefix)+len(label)))
	info = append(info, prefix...)
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(h, secret, string(info), size)
}

// direction is what protects the records that go one way.
type direction struct {
	suite  uint16
	seq    uint64 // of the next record
	aead   cipher.AEAD
	secret []byte        // application_traffic_secret_N
	iv     [ivBytes]byte // xored with seq for each record
	nonce  [ivBytes]byte // here, because what an interface is given is on the heap
}

// start derives the keys of secret, of which d becomes the owner (RFC 8446 section 7.3).
func (d *direction) start(secret []byte) error {
	s, ok := suiteOf(d.suite)
	if !ok {
		return fmt.Errorf("cipher suite %s is not one of TLS 1.3", tls.CipherSuiteName(d.suite))
	}
	key, err := expand(s.hash, secret, "key", s.keyBytes)
	if err != nil {
		return fmt.Errorf("derive traffic key: %w", err)
	}
	defer clear(key)
	iv, err := expand(s.hash, secret, "iv", ivBytes)
	if err != nil {
		return fmt.Errorf("derive traffic iv: %w", err)
	}
	aead, err := s.aead(key)
	if err != nil {
		return fmt.Errorf("set traffic key: %w", err)
	}
	clear(d.secret)
	d.secret, d.aead, d.seq = secret, aead, 0
	copy(d.iv[:], iv)
	return nil
}

// update goes on to the next generation of keys (RFC 8446 section 7.2).
func (d *direction) update() error {
	s, _ := suiteOf(d.suite)
	next, err := expand(s.hash, d.secret, "traffic upd", len(d.secret))
	if err != nil {
		return fmt.Errorf("derive next traffic secret: %w", err)
	}
	return d.start(next)
}

// prepare sets the nonce of the next record (RFC 8446 section 5.3).
func (d *direction) prepare() {
	d.nonce = d.iv
	for i := range 8 {
		d.nonce[ivBytes-1-i] ^= byte(d.seq >> (8 * i))
	}
}

// open decrypts a whole record to the end of dst, which must not overlap it. If that fails nothing has changed.
func (d *direction) open(dst, record []byte) ([]byte, error) {
	d.prepare()
	p, err := d.aead.Open(dst, d.nonce[:], record[HeaderBytes:], record[:HeaderBytes])
	if err == nil {
		d.seq++
	}
	return p, err
}

// seal encrypts record in place: room for the header, the content and its type. There must be capacity for the tag.
func (d *direction) seal(record []byte) []byte {
	size := len(record) - HeaderBytes + tagBytes
	record[0], record[1], record[2], record[3], record[4] = typeData, 3, 3, byte(size>>8), byte(size)
	d.prepare()
	d.aead.Seal(record[:HeaderBytes], d.nonce[:], record[HeaderBytes:], record[:HeaderBytes])
	d.seq++
	return record[:HeaderBytes+size]
}

// forget zeroes what Go lets us: the key inside the AEAD is out of reach, and left to the garbage collector.
func (d *direction) forget() {
	clear(d.secret)
	clear(d.iv[:])
	clear(d.nonce[:])
	d.aead = nil
}
