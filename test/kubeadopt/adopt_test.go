package kubeadopt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubemesh"
)

const (
	bodyMaxBytes = 1 << 20
	// root is that of the checkout, where the commands of the procedure are run.
	root = "../.."
)

// rig is the mesh, and the procedure that is followed in it.
type rig struct {
	*kubemesh.Mesh
	sections map[string][]string
	gateway  string
	client   *http.Client
}

// TestAdoption follows the procedures in order, in one cluster.
func TestAdoption(t *testing.T) {
	r := &rig{Mesh: kubemesh.Up(t, kubemesh.Config{Nodes: 1, Programs: []string{"examples/bookinfo", "test/kubeadopt/peer"}})}
	text, err := os.ReadFile(filepath.Join(root, "docs/adoption.md"))
	if err != nil {
		t.Fatal(err)
	}
	r.sections = commands(string(text))
	r.gateway = r.Address(deploy.Namespace, "istio-ingressgateway")
	for _, part := range []struct {
		name string
		run  func(*rig)
	}{
		{"bookinfo", (*rig).bookinfo},
		{"jobs", (*rig).jobs},
		{"order", (*rig).order},
		{"restart", (*rig).restart},
		{"first", (*rig).speaksFirst},
		{"canary", (*rig).canary},
		{"switch", (*rig).blueGreen},
	} {
		t.Run(part.name, func(t *testing.T) {
			m := r.For(t)
			part.run(&rig{Mesh: m, sections: r.sections, gateway: r.gateway, client: m.Client()})
		})
	}
}

// commands are the lines of the indented blocks of each section.
func commands(text string) map[string][]string {
	sections, section := map[string][]string{}, ""
	for line := range strings.SplitSeq(text, "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = title
		}
		if command, ok := strings.CutPrefix(line, "    "); ok {
			sections[section] = append(sections[section], command)
		}
	}
	return sections
}

// follow runs the commands of a section one after the other, as a user does, and returns what they printed.
func (r *rig) follow(section string) string {
	r.Helper()
	lines := r.sections[section]
	if len(lines) == 0 {
		r.Fatalf("docs/adoption.md has no commands in a section %q", section)
	}
	return r.shell(strings.Join(lines, "\n"))
}

// shell runs a script in the checkout. curl is run in the cluster's network, where gateways are reached.
func (r *rig) shell(script string) string {
	r.Helper()
	bin, err := filepath.Abs(filepath.Join(root, "bin"))
	if err != nil {
		r.Fatal(err)
	}
	inside := `curl() { nsenter --net="$CLUSTER_NETWORK" curl "$@"; }` + "\n"
	cmd := exec.CommandContext(r.Context(), "bash", "-e", "-c", inside+script)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.Kubeconfig, "CLUSTER_NETWORK="+r.Network, "PATH="+bin+":"+os.Getenv("PATH"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.Broken(fmt.Errorf("%s: %w\n%s%s", script, err, out, stderr.Bytes()))
	}
	return string(out)
}

// get sends a request and returns the answer's header and body.
func get(client *http.Client, url string, header ...string) (http.Header, string, error) {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, "", err
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			request.Host = header[i+1]
		}
		request.Header.Set(header[i], header[i+1])
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, bodyMaxBytes))
	if err != nil {
		return nil, "", err
	}
	if response.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%s, reason %q: %s", response.Status, response.Header.Get("X-Lateen-Reason"), text)
	}
	return response.Header, string(text), nil
}

// hop and call are what Bookinfo's services tell of a request in the header Bookinfo-Trail.
type hop struct {
	Service, Version, Pod string
	Calls                 []call
}

type call struct {
	Service, Failure string
	Status           int
	By               *hop
}

// fault is the first call, here or further on, that failed, even if the one after it went well.
func (h *hop) fault() error {
	for _, c := range h.Calls {
		switch {
		case c.Failure != "":
			return fmt.Errorf("%s calls %s: %s, status %d", h.Pod, c.Service, c.Failure, c.Status)
		case c.By == nil:
			return fmt.Errorf("%s calls %s: nobody of Bookinfo answered", h.Pod, c.Service)
		}
		if err := c.By.fault(); err != nil {
			return err
		}
	}
	return nil
}

// version is that of a service that had a part in the request.
func (h *hop) version(service string) string {
	if h.Service == service {
		return h.Version
	}
	for _, c := range h.Calls {
		if c.By != nil {
			if v := c.By.version(service); v != "" {
				return v
			}
		}
	}
	return ""
}

// page asks for the page and returns the trail; a fault of any service behind it is one of the page.
func page(client *http.Client, url string, header ...string) (*hop, error) {
	answer, _, err := get(client, url+"/productpage", header...)
	if err != nil {
		return nil, err
	}
	var trail hop
	if err := json.Unmarshal([]byte(answer.Get("Bookinfo-Trail")), &trail); err != nil {
		return nil, fmt.Errorf("read trail %q: %w", answer.Get("Bookinfo-Trail"), err)
	}
	if len(trail.Calls) < 2 {
		return nil, errors.New("the page called too few: " + answer.Get("Bookinfo-Trail"))
	}
	return &trail, trail.fault()
}
