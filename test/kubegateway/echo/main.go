// Command echo is the server and the client of the conformance suite's tests within a mesh, where the suite's own manifests
// ask for the image echo-advanced. It speaks what these tests read of the echo of Istio's tests, and no more: HTTP and gRPC.
//
//	echo --port=8080 --grpc=7070 ... answer requests with what has come; other protocols are not served
//	client URL --method=GET -H NAME:VALUE --count=1
//
// In: flags and requests. Out: answers, and for the client a line "NAME=VALUE" for each thing that it has seen, with an
// empty line behind each response. It must not know the mesh.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// patience bounds a request.
	patience     = 10 * time.Second
	bodyMaxBytes = 1 << 20
	// maxCount bounds the requests of one call of the client.
	maxCount = 10_000
	// defaultPort is served where no other is named.
	defaultPort = "8080"
)

func main() {
	run := serve
	if path.Base(os.Args[0]) == "client" {
		run = ask
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// serve serves until a server ends.
func serve(args []string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	var encrypted, ports []string
	for _, a := range args {
		name, port, _ := strings.Cut(a, "=")
		switch name {
		case "--port", "--grpc":
			ports = append(ports, port)
		case "--tls":
			encrypted = append(encrypted, port)
		}
	}
	if len(ports) == 0 {
		ports = []string{defaultPort}
	}
	ended := make(chan error)
	for _, port := range ports {
		if slices.Contains(encrypted, port) {
			continue
		}
		var both http.Protocols
		both.SetHTTP1(true)
		both.SetUnencryptedHTTP2(true)
		s := &http.Server{Addr: ":" + port, Handler: echo(host, port), ReadHeaderTimeout: patience, Protocols: &both}
		go func() { ended <- s.ListenAndServe() }()
	}
	return <-ended
}

// echo answers with what has come; in gRPC, whatever is called, this is the text of the one message.
func echo(host, port string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var out bytes.Buffer
		fmt.Fprintf(&out, "Hostname=%s\nServicePort=%s\nMethod=%s\nProto=%s\nHost=%s\nURL=%s\n", host, port, r.Method, r.Proto, r.Host, r.URL)
		for name, values := range r.Header {
			for _, v := range values {
				fmt.Fprintf(&out, "RequestHeader=%s:%s\n", name, v)
			}
		}
		if r.Header.Get("Content-Type") == grpcType {
			w.Header().Set("Content-Type", grpcType)
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
			_, _ = w.Write(message(out.Bytes())) // the client may have gone
			return
		}
		_, _ = w.Write(out.Bytes())
	})
}

// grpcType is the content type of gRPC, grpcHead how many bytes are before a message: a flag and its length.
const (
	grpcType = "application/grpc"
	grpcHead = 5
)

// message is a message of gRPC.
func message(text []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text))), text...) //nolint:gosec // a few hundred bytes
}

// order is what the client is asked to do.
type order struct {
	url, method string
	header      http.Header
	host        string
	count       int
}

func orderOf(args []string) (order, error) {
	o := order{method: http.MethodGet, header: http.Header{}, count: 1}
	for i := 0; i < len(args); i++ {
		name, value, _ := strings.Cut(args[i], "=")
		switch {
		case name == "--method":
			o.method = value
		case name == "--count":
			n, err := strconv.Atoi(value)
			if err != nil || n > maxCount {
				return o, fmt.Errorf("--count=%s is no number of requests", value)
			}
			o.count = n
		case args[i] == "-H" && i+1 < len(args):
			i++
			field, text, _ := strings.Cut(args[i], ":")
			if strings.EqualFold(field, "Host") {
				o.host = text
			} else {
				o.header.Add(field, text)
			}
		case !strings.HasPrefix(args[i], "-") && o.url == "":
			o.url = args[i]
		default:
			return o, fmt.Errorf("%q is not understood", args[i])
		}
	}
	return o, nil
}

// ask sends the requests one after another and prints what comes back; a response that says to ask elsewhere is printed.
func ask(args []string) error {
	o, err := orderOf(args)
	if err != nil {
		return err
	}
	transport := &http.Transport{Protocols: new(http.Protocols)}
	if text, ok := strings.CutPrefix(o.url, "grpc://"); ok {
		o.url, o.method = "http://"+strings.TrimSuffix(text, "/")+"/proto.EchoTestService/Echo", http.MethodPost
		o.header.Set("Content-Type", grpcType)
		o.header.Set("Te", "trailers")
		transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		transport.Protocols.SetHTTP1(true)
	}
	client := &http.Client{
		Timeout: patience, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	out := bufio.NewWriter(os.Stdout)
	for i := range o.count {
		if err := once(client, o, i, out); err != nil {
			return errors.Join(err, out.Flush())
		}
	}
	return out.Flush()
}

func once(client *http.Client, o order, i int, out io.Writer) error {
	grpc := o.header.Get("Content-Type") == grpcType
	var sent io.Reader = http.NoBody
	if grpc {
		sent = bytes.NewReader(message(nil))
	}
	request, err := http.NewRequestWithContext(context.Background(), o.method, o.url, sent)
	if err != nil {
		return err
	}
	request.Header, request.Host = o.header, cmp.Or(o.host, request.Host)
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, bodyMaxBytes))
	if err != nil {
		return err
	}
	if status := cmp.Or(response.Trailer.Get("Grpc-Status"), response.Header.Get("Grpc-Status")); grpc && status != "0" {
		return fmt.Errorf("the call ended with status %q of gRPC", status)
	}
	if grpc {
		body = body[min(grpcHead, len(body)):]
	}
	fmt.Fprintf(out, "[%d] StatusCode=%d\n", i, response.StatusCode)
	for name, values := range response.Header {
		for _, v := range values {
			fmt.Fprintf(out, "[%d] ResponseHeader=%s:%s\n", i, name, v)
		}
	}
	for line := range strings.Lines(string(body)) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(out, "[%d body] %s\n", i, line)
		}
	}
	_, err = fmt.Fprintln(out)
	return err
}
