// Command agent is the only thing that the tests put inside a workload: over a Unix socket it opens connections and
// listening sockets there and hands them out, and runs programs there. So a test can be a client and a server of the
// mesh itself, and can run any client as it comes.
//
//	agent SOCKET
//
// One request a connection, as one line of JSON (Request), with the descriptors that it speaks of; one line comes back
// (Answer), with the socket that was opened. A program ends with the connection that asked for it. The agent ends on
// SIGTERM; it knows nothing of the mesh.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// maxLine bounds a request.
const maxLine = 64 << 10

// Request asks for one thing.
type Request struct {
	// Dial and Listen have a network and an address, as for package net.
	Dial   []string `json:"dial,omitempty"`
	Listen []string `json:"listen,omitempty"`
	// Exec is a program with its arguments; its standard files come along.
	Exec []string `json:"exec,omitempty"`
}

// Answer says what became of it.
type Answer struct {
	Error string `json:"error,omitempty"`
	Code  int    `json:"code,omitempty"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".new", Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Rename(path+".new", path); err != nil { // Whoever sees the socket can connect.
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go answer(ctx, c)
	}
}

func answer(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a, file, err := do(ctx, cancel, c)
	if err != nil {
		a.Error = err.Error()
	}
	line, err := json.Marshal(a)
	if err != nil {
		return
	}
	var rights []byte
	if file != nil {
		defer file.Close()
		rights = syscall.UnixRights(int(file.Fd()))
	}
	_, _, _ = c.WriteMsgUnix(append(line, '\n'), rights, nil)
}

func do(ctx context.Context, cancel func(), c *net.UnixConn) (Answer, *os.File, error) {
	line, oob := make([]byte, maxLine), make([]byte, syscall.CmsgSpace(3*4))
	n, oobn, _, _, err := c.ReadMsgUnix(line, oob)
	if err != nil {
		return Answer{}, nil, err
	}
	var r Request
	if err := json.Unmarshal(line[:n], &r); err != nil {
		return Answer{}, nil, err
	}
	switch {
	case len(r.Dial) == 2:
		conn, err := (&net.Dialer{}).DialContext(ctx, r.Dial[0], r.Dial[1])
		if err != nil {
			return Answer{}, nil, err
		}
		defer conn.Close()
		file, err := conn.(interface{ File() (*os.File, error) }).File()
		return Answer{}, file, err
	case len(r.Listen) == 2:
		l, err := (&net.ListenConfig{}).Listen(ctx, r.Listen[0], r.Listen[1])
		if err != nil {
			return Answer{}, nil, err
		}
		defer l.Close()
		file, err := l.(*net.TCPListener).File()
		return Answer{}, file, err
	case len(r.Exec) > 0:
		code, err := run(ctx, cancel, c, r.Exec, oob[:oobn])
		return Answer{Code: code}, nil, err
	}
	return Answer{}, nil, errors.New("nothing is asked for")
}

// run runs a program until it ends, or until the connection does.
func run(ctx context.Context, cancel func(), c *net.UnixConn, argv []string, oob []byte) (int, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("standard files: %d messages (%w)", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 3 {
		return 0, fmt.Errorf("standard files: %d (%w)", len(fds), err)
	}
	var files []*os.File
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "stdio")
		defer f.Close()
		files = append(files, f)
	}
	go func() { // Ends with the connection.
		_, _ = bufio.NewReader(c).ReadByte()
		cancel()
	}()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return 0, err
}
