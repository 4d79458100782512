package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asCommand, in the environment, makes the test binary behave as the program.
const asCommand = "BOOKINFO_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestSigterm(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "details", "--listen", "127.0.0.1:0", "--pod", "d1")
	cmd.Env = append(os.Environ(), asCommand+"=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stderr)
	first, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	at := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(first)
	if at == nil {
		t.Fatalf("the first line of the log has no address: %s", first)
	}
	conn, err := net.Dial("tcp", at[1])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	for range 3 {
		if _, err := io.WriteString(conn, "GET /details/0 HTTP/1.1\r\nHost: details\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || resp.Close || !bytes.Contains(body, []byte("Shakespeare")) {
			t.Errorf("got %q, %v, close %v", body, err, resp.Close)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("exit after SIGTERM: %v; log:\n%s%s", err, first, rest)
	}
	if !bytes.Contains(rest, []byte("stopped")) {
		t.Errorf("log lacks the end: %s", rest)
	}
}

// TestDrain ends the service while a request is being served.
func TestDrain(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	s, err := New(Config{Service: productpage, Pod: "p", PageTimeout: time.Minute}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.client.Transport = world{"ratings:9080": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(began)
		<-release
		_, _ = w.Write([]byte("{}"))
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, ln) }()
	answered := make(chan string, 1)
	go func() {
		answered <- fetchBody(t, &http.Client{}, "http://"+ln.Addr().String()+"/api/v1/products/0/ratings")
	}()
	<-began
	stop()
	// The listener closes first, so a refused connection proves that the shutdown has begun.
	for {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
	}
	close(release)
	if got := <-answered; got != "{}\n" {
		t.Errorf("the open request got %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func fetchBody(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

func TestPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = run(t.Context(), []string{"details", "--pod", "d", "--listen", ln.Addr().String()}, func(string) string { return "" }, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "choose another with --listen") {
		t.Errorf("got error %v", err)
	}
}
