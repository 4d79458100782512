package oracle

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
)

// worldFile is one file of testdata. Its comment says what it is about; then come
//
//	-- mesh.yaml --      objects beside those of base.yaml, with ${NAME} for the certificates of certs_test.go
//	-- requests --       see parseRequests
//	-- differs --        lines as in differences.txt, but without the world
type worldFile struct {
	name     string
	yaml     string
	requests []request
	differs  []difference
}

// request is one question, or several alike.
type request struct {
	name string
	text string // the head and body as bytes, or for HTTP/2 the same as text
	position
	to       string     // where it is sent
	from     netip.Addr // an address of the place; invalid: any
	count    int        // how often it is sent; more than 1: only the distribution is compared
	within   int        // by how many of count the distribution may differ
	each     bool       // compare every one of count, with {i} in the text as its number from 0
	parallel bool       // send all of count at the same time
	h2       bool
	tls      bool
	sni      string
	alpn     []string
	cert     string // whose certificate is shown: "namespace/account" of the mesh, or "client"
	conn     string // requests of one name that follow one another share a connection
	after    string // what is sent when the head of the answer has come
	tcp      bool   // the text is sent as it is, and what comes back is the body
	target   string // what of this target reaches a backend later is not counted for the requests that follow
	await    int    // how many records the backends must have made
	wait     time.Duration
	late     time.Duration // how long after the rest the last byte of the text is sent, over HTTP/1
}

// position is where the proxy stands.
type position string

const (
	atClient  position = "client"  // the sidecar of who asks
	atServer  position = "server"  // the sidecar of who is asked
	atGateway position = "gateway" // before the mesh
)

// places are where requests go by default.
var places = map[position]string{atClient: "10.8.0.1:80", atServer: "10.9.0.20:8080", atGateway: "10.9.0.30:8080"}

// readWorlds reads all files of testdata whose name matches a pattern.
func readWorlds(t *testing.T, pattern string, certs *strings.Replacer) []*worldFile {
	t.Helper()
	files, err := filepath.Glob("testdata/" + pattern + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	var out []*worldFile
	for _, f := range files {
		a, err := txtar.ParseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		w := &worldFile{name: strings.TrimSuffix(filepath.Base(f), ".txtar")}
		for _, part := range a.Files {
			switch text := string(part.Data); part.Name {
			case "mesh.yaml":
				w.yaml = certs.Replace(text)
			case "requests":
				if w.requests, err = parseRequests(text); err != nil {
					t.Fatalf("%s: %v", f, err)
				}
			case "differs":
				if w.differs, err = parseDifferences(text, w.name+" "); err != nil {
					t.Fatalf("%s: %v", f, err)
				}
			default:
				t.Fatalf("%s: what is %q?", f, part.Name)
			}
		}
		if len(w.requests) == 0 {
			t.Fatalf("%s: no requests", f)
		}
		out = append(out, w)
	}
	return out
}

// parseRequests reads blocks of the form
//
//	[name position option option=value]
//	GET /path
//	Field: value
//
//	body
//
// The options are the fields of request. What every request needs is added where it is missing: the version, Host: echo,
// the length of the body. With the option raw nothing is, and each line is bytes with Go's escapes, without an end.
func parseRequests(text string) ([]request, error) {
	var out []request
	where := atClient
	for block := range strings.SplitSeq("\n"+text, "\n[") {
		if strings.TrimSpace(block) == "" {
			continue
		}
		head, body, _ := strings.Cut(block, "\n")
		head, closed := strings.CutSuffix(strings.TrimSpace(head), "]")
		words := strings.Fields(head)
		if !closed || len(words) == 0 {
			return nil, fmt.Errorf("[%s: want [name options]", head)
		}
		r := request{name: words[0], position: where, count: 1}
		raw := false
		for _, word := range words[1:] {
			if word == "raw" {
				raw = true
			} else if err := r.option(word); err != nil {
				return nil, fmt.Errorf("[%s]: option %s: %w", head, word, err)
			}
		}
		where = r.position
		if r.to == "" {
			r.to = places[r.position]
		}
		if slices.ContainsFunc(out, func(o request) bool { return o.name == r.name }) {
			return nil, fmt.Errorf("[%s]: the name is taken", head)
		}
		var err error
		body = strings.TrimRight(body, "\n")
		switch {
		case raw || r.tcp:
			for line := range strings.SplitSeq(body, "\n") {
				line, err = strconv.Unquote(`"` + strings.ReplaceAll(line, `"`, `\"`) + `"`)
				r.text += line
			}
		default:
			r.text = complete(body)
		}
		if err != nil {
			return nil, fmt.Errorf("[%s]: %w", head, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func (r *request) option(word string) (err error) {
	name, value, _ := strings.Cut(word, "=")
	switch name {
	case string(atClient), string(atServer), string(atGateway):
		r.position = position(name)
	case "to":
		r.to = value
	case "from":
		r.from, err = netip.ParseAddr(value)
	case "n":
		r.count, err = strconv.Atoi(value)
	case "within":
		r.within, err = strconv.Atoi(value)
	case "each":
		r.each = true
	case "parallel":
		r.parallel = true
	case "h2":
		r.h2 = true
	case "tls":
		r.tls, r.sni = true, value
	case "alpn":
		r.alpn = strings.Split(value, ",")
	case "cert":
		r.tls, r.cert = true, value
	case "conn":
		r.conn = value
	case "after":
		r.after, err = strconv.Unquote(`"` + value + `"`)
	case "tcp":
		r.tcp = true
	case "target":
		r.target = value
	case "await":
		r.await, err = strconv.Atoi(value)
	case "wait":
		r.wait, err = time.ParseDuration(value)
	case "late":
		r.late, err = time.ParseDuration(value)
	default:
		err = os.ErrInvalid
	}
	return err
}

// complete adds what every request needs.
func complete(text string) string {
	head, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if !strings.Contains(lines[0], " HTTP/") {
		lines[0] += " HTTP/1.1"
	}
	has := func(name string) bool {
		return slices.ContainsFunc(lines[1:], func(l string) bool {
			field, _, _ := strings.Cut(l, ":")
			return strings.EqualFold(field, name)
		})
	}
	if !has("host") {
		lines = slices.Insert(lines, 1, "Host: echo")
	}
	if body != "" && !has("content-length") && !has("transfer-encoding") {
		lines = append(lines, "Content-Length: "+strconv.Itoa(len(body)))
	}
	if has("transfer-encoding") {
		body = strings.ReplaceAll(strings.TrimSpace(body), "\n", "\r\n") + "\r\n\r\n"
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}
