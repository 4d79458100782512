package http2

import "encoding/binary"

// Sizes and limits of RFC 9113 sections 4 and 6.
const (
	frameHeaderLen = 9
	// maxFrameSize is the longest payload that everybody accepts: the initial value.
	maxFrameSize = 16 << 10
	maxStreamID  = 1<<31 - 1
	maxWindow    = 1<<31 - 1
	// initialWindow is the flow-control window of a connection, and of a stream before SETTINGS.
	initialWindow = 65535
)

type frameType uint8

// The frame types of RFC 9113 section 6.
const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

type frameFlags uint8

// The flags that mean something; which, depends on the type.
const (
	flagEndStream  frameFlags = 0x1
	flagAck        frameFlags = 0x1
	flagEndHeaders frameFlags = 0x4
	flagPadded     frameFlags = 0x8
	flagPriority   frameFlags = 0x20
)

// priorityLen is the length of the deprecated priority fields of HEADERS.
const priorityLen = 5

type frameHeader struct {
	length int
	typ    frameType
	flags  frameFlags
	stream uint32
}

// parseFrameHeader reads the first 9 bytes of p; the reserved bit is ignored.
func parseFrameHeader(p []byte) frameHeader {
	return frameHeader{
		length: int(p[0])<<16 | int(p[1])<<8 | int(p[2]),
		typ:    frameType(p[3]),
		flags:  frameFlags(p[4]),
		stream: binary.BigEndian.Uint32(p[5:9]) & maxStreamID,
	}
}

func (h frameHeader) append(b []byte) []byte {
	b = append(b, byte(h.length>>16), byte(h.length>>8), byte(h.length), byte(h.typ), byte(h.flags))
	return binary.BigEndian.AppendUint32(b, h.stream)
}

func appendReset(b []byte, id uint32, code ErrCode) []byte {
	b = frameHeader{length: 4, typ: frameReset, stream: id}.append(b)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendPing(b []byte, flags frameFlags, data [8]byte) []byte {
	b = frameHeader{length: 8, typ: framePing, flags: flags}.append(b)
	return append(b, data[:]...)
}

func appendGoAway(b []byte, last uint32, code ErrCode, debug string) []byte {
	b = frameHeader{length: 8 + len(debug), typ: frameGoAway}.append(b)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}

func appendWindowUpdate(b []byte, id uint32, n int) []byte {
	b = frameHeader{length: 4, typ: frameWindowUpdate, stream: id}.append(b)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// stripPadding returns the payload of a DATA or HEADERS frame without its padding (RFC 9113 section 6.1).
func stripPadding(flags frameFlags, p []byte) ([]byte, *Error) {
	if flags&flagPadded == 0 {
		return p, nil
	}
	if len(p) == 0 {
		return nil, fault(ErrCodeFrameSize, "padded frame without a pad length")
	}
	pad := int(p[0])
	if pad >= len(p) {
		return nil, fault(ErrCodeProtocol, "padding is longer than its frame")
	}
	return p[1 : len(p)-pad], nil
}
