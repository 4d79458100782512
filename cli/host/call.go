package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

// CallError is an answer other than 2xx.
type CallError struct {
	Status int
	Body   []byte
}

// Error says what the answer says, if it can be understood: {"error": "..."}.
func (e *CallError) Error() string {
	var told struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(e.Body, &told) == nil && told.Error != "" {
		return told.Error
	}
	return fmt.Sprintf("it answered %d %s: %s", e.Status, http.StatusText(e.Status), strings.TrimSpace(string(e.Body)))
}

// ErrNobody is met when nobody serves a socket.
var ErrNobody = errors.New("nobody answers there")

// Call sends one HTTP request over a Unix socket. body is sent as it is if it is []byte, else as JSON; what is answered
// goes into out, as it is if that is a *[]byte, else from JSON. An answer other than 2xx is a *CallError; that nobody
// serves the socket is ErrNobody.
func Call(ctx context.Context, socket, method, path string, body, out any) error {
	var payload io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		payload = bytes.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return fmt.Errorf("write a request to %s: %w", socket, err)
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lateen"+path, payload)
	if err != nil {
		return fmt.Errorf("make a request to %s: %w", socket, err)
	}
	if _, raw := body.([]byte); body != nil && !raw {
		req.Header.Set("Content-Type", "application/json")
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("call %s: %w", socket, ErrNobody)
		}
		return fmt.Errorf("call %s: %w", socket, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", socket, err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("call %s: %w", path, &CallError{resp.StatusCode, answer})
	}
	return decodeAnswer(socket, answer, out)
}

func decodeAnswer(socket string, answer []byte, out any) error {
	switch o := out.(type) {
	case nil:
	case *[]byte:
		*o = answer
	default:
		if err := json.Unmarshal(answer, out); err != nil {
			return fmt.Errorf("understand the answer of %s: %w", socket, err)
		}
	}
	return nil
}
