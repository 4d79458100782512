package http2

import (
	"encoding/binary"
	"math"
)

type settingID uint16

// The settings of RFC 9113 section 6.5.2 and RFC 8441 section 3.
const (
	settingTableSize       settingID = 0x1
	settingEnablePush      settingID = 0x2
	settingMaxStreams      settingID = 0x3
	settingInitialWindow   settingID = 0x4
	settingMaxFrameSize    settingID = 0x5
	settingMaxHeadBytes    settingID = 0x6
	settingExtendedConnect settingID = 0x8
)

// settingLen is the length of one setting in a SETTINGS frame.
const settingLen = 6

// settings are what the peer asked for.
type settings struct {
	tableSize       uint32
	maxStreams      uint32
	initialWindow   uint32
	maxFrameSize    uint32
	extendedConnect bool
}

// initialSettings are in force until the peer's SETTINGS arrive.
var initialSettings = settings{
	tableSize:     hpackTableSize,
	maxStreams:    math.MaxUint32,
	initialWindow: initialWindow,
	maxFrameSize:  maxFrameSize,
}

// set takes one setting over. byServer tells that the peer is the server. What is unknown is ignored.
func (s *settings) set(id settingID, v uint32, byServer bool) *Error {
	switch id {
	case settingTableSize:
		s.tableSize = v
	case settingEnablePush:
		if v > 1 || byServer && v == 1 {
			return fault(ErrCodeProtocol, "SETTINGS_ENABLE_PUSH is out of range")
		}
	case settingMaxStreams:
		s.maxStreams = v
	case settingInitialWindow:
		if v > maxWindow {
			return fault(ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE is out of range")
		}
		s.initialWindow = v
	case settingMaxFrameSize:
		if v < maxFrameSize || v > 1<<24-1 {
			return fault(ErrCodeProtocol, "SETTINGS_MAX_FRAME_SIZE is out of range")
		}
		s.maxFrameSize = v
	case settingExtendedConnect:
		if v > 1 || v == 0 && s.extendedConnect {
			return fault(ErrCodeProtocol, "SETTINGS_ENABLE_CONNECT_PROTOCOL is out of range or taken back")
		}
		s.extendedConnect = v == 1
	default:
	}
	return nil
}

// appendSettings appends our SETTINGS, and the WINDOW_UPDATE that makes the connection's window what cfg says.
func appendSettings(b []byte, cfg *Config, server bool) []byte {
	start := len(b)
	b = frameHeader{typ: frameSettings}.append(b)
	if server {
		b = appendSetting(b, settingMaxStreams, uint32(cfg.MaxStreams))
		if cfg.ExtendedConnect {
			b = appendSetting(b, settingExtendedConnect, 1)
		}
	} else {
		b = appendSetting(b, settingEnablePush, 0)
	}
	b = appendSetting(b, settingInitialWindow, uint32(cfg.StreamWindow))
	if cfg.FrameBytes != maxFrameSize {
		b = appendSetting(b, settingMaxFrameSize, uint32(cfg.FrameBytes))
	}
	b = appendSetting(b, settingMaxHeadBytes, uint32(cfg.HeadBytesMax))
	b[start+2] = byte(len(b) - start - frameHeaderLen)
	if n := cfg.ConnWindow - initialWindow; n > 0 {
		b = appendWindowUpdate(b, 0, n)
	}
	return b
}

func appendSetting(b []byte, id settingID, v uint32) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(id))
	return binary.BigEndian.AppendUint32(b, v)
}
