package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// greeting is what a server of MySQL says first: a packet (length in three bytes, little endian; number) that holds the
// initial handshake of protocol 10 (MySQL, "Client/Server Protocol", HandshakeV10): version, connection, half of the
// challenge, capabilities, character set, status, and the other half.
func greeting() []byte {
	var body bytes.Buffer
	body.WriteString("\x0a11.8.2-MariaDB\x00")
	body.Write([]byte{42, 0, 0, 0})               // connection
	body.WriteString("12345678\x00")              // challenge, first half; filler
	body.Write([]byte{0xfe, 0xf7, 0x2d, 0x02, 0}) // capabilities, low; utf8mb4_general_ci; status: autocommit
	body.Write([]byte{0, 0xff, 0x81, 21})         // status, high; capabilities, high; length of the challenge
	body.Write(make([]byte, 10))                  // reserved
	body.WriteString("abcdefghijkl\x00")          // challenge, second half
	body.WriteString("mysql_native_password\x00") // how to answer it
	packet := binary.LittleEndian.AppendUint32(nil, uint32(body.Len()))
	return append(packet, body.Bytes()...)
}

// greet greets who connects, and sends back what comes, until ctx ends.
func greet(ctx context.Context, addresses []string) error {
	listeners, err := listenAll(ctx, addresses)
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	defer group.Wait()
	for _, l := range listeners {
		group.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return // it was closed
				}
				go func() {
					defer conn.Close()
					if _, err := conn.Write(greeting()); err == nil {
						_, _ = io.Copy(conn, conn) // the client may have gone
					}
				}()
			}
		})
	}
	<-ctx.Done()
	return closeAll(listeners)
}

// hello waits for the greeting without a word, says one, and waits for it to come back.
func hello(ctx context.Context, address string, within time.Duration) error {
	began := time.Now()
	conn, err := (&net.Dialer{Timeout: within}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(began.Add(within)); err != nil {
		return err
	}
	got := make([]byte, len(greeting()))
	if _, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("wait for the greeting: %w", err)
	}
	if !bytes.Equal(got, greeting()) {
		return fmt.Errorf("the greeting is %q", got)
	}
	greeted := time.Since(began)
	word := []byte("\x05\x00\x00\x01hello")
	if _, err := conn.Write(word); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, got[:len(word)]); err != nil {
		return fmt.Errorf("wait for the answer: %w", err)
	}
	if !bytes.Equal(got[:len(word)], word) {
		return errors.New("another word came back")
	}
	fmt.Fprintln(os.Stdout, "greeted after", greeted.Round(time.Millisecond), "answered after", time.Since(began).Round(time.Millisecond))
	return nil
}
