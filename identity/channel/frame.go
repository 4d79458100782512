package channel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// prefixBytes is the length of what precedes each message: a flag for
// compression and the length, big endian (doc/PROTOCOL-HTTP2.md,
// Length-Prefixed-Message).
const prefixBytes = 5

// frameOf puts the prefix before a message.
func frameOf(message []byte) ([]byte, error) {
	if len(message) > messageMaxBytes {
		return nil, &Error{Code: ResourceExhausted, Message: fmt.Sprintf("a message of %d bytes, at most %d may be sent", len(message), messageMaxBytes)}
	}
	frame := make([]byte, prefixBytes, prefixBytes+len(message))
	binary.BigEndian.PutUint32(frame[1:], uint32(len(message)))
	return append(frame, message...), nil
}

// readFrame reads a message and returns it without its prefix, never nil. The
// error is io.EOF at the end of the stream, and an *Error or what the reader
// returned otherwise.
func readFrame(r io.Reader) ([]byte, error) {
	var prefix [prefixBytes]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, cutShort(err)
	}
	if prefix[0] != 0 {
		return nil, &Error{Code: Internal, Message: fmt.Sprintf("the server sent a message with the flags %#x, though no compression was offered", prefix[0])}
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if n > messageMaxBytes {
		return nil, &Error{Code: ResourceExhausted, Message: fmt.Sprintf("the server sent a message of %d bytes, at most %d are taken", n, messageMaxBytes)}
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r, message); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, cutShort(err)
	}
	return message, nil
}

// cutShort explains io.ErrUnexpectedEOF, which is what net/http reports when
// the connection is lost, and what io.ReadFull reports within a message.
func cutShort(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{Code: Unavailable, Message: "the connection to the control plane was cut", cause: err}
	}
	return err
}
