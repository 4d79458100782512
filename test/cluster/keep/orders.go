package keep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lateen-mesh/lateen/test/cluster/layout"
)

const (
	// headerPatience bounds how long a client takes to say what it wants, maxOrderBytes how much it says.
	headerPatience = 10 * time.Second
	maxOrderBytes  = 1 << 20
	// goodbye bounds the wait for the answers that are under way at the end.
	goodbye = time.Second
)

// Status is what there is of a cluster.
type Status struct {
	Layout layout.Layout `json:"layout"`
	// Up are the names of the nodes that are up.
	Up []string `json:"up"`
}

// serve takes orders on the cluster's socket.
func (k *Keeper) serve(ctx context.Context) error {
	listener, err := net.Listen("unix", k.cfg.Layout.Socket())
	if err != nil {
		return fmt.Errorf("take orders: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		// A client that has gone needs no answer.
		_ = json.NewEncoder(w).Encode(k.status())
	})
	mux.HandleFunc("POST /nodes/{n}/{what}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, k.nodeOrder(r))
	})
	mux.HandleFunc("POST /load", func(w http.ResponseWriter, r *http.Request) {
		var archives []string
		if err := json.NewDecoder(io.LimitReader(r.Body, maxOrderBytes)).Decode(&archives); err != nil {
			answer(w, fmt.Errorf("read list of images: %w", err))
			return
		}
		answer(w, k.loadAll(r.Context(), archives))
	})
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: headerPatience,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		stopped <- server.Shutdown(grace)
	})()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("take orders: %w", err)
	}
	if err := <-stopped; err != nil {
		k.cfg.Logger.Warn("an order was overtaken by the end of the cluster", "err", err)
	}
	return nil
}

func (k *Keeper) status() Status {
	s := Status{Layout: k.cfg.Layout}
	for n := 1; n <= k.cfg.Layout.Nodes; n++ {
		if _, ok := k.running(k.cfg.Layout.NodeName(n)); ok {
			s.Up = append(s.Up, k.cfg.Layout.NodeName(n))
		}
	}
	return s
}

func (k *Keeper) nodeOrder(r *http.Request) error {
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil {
		return fmt.Errorf("node %q: give its number", r.PathValue("n"))
	}
	switch what := r.PathValue("what"); what {
	case "kill":
		return k.killNode(r.Context(), n)
	case "start":
		return k.restartNode(r.Context(), n)
	default:
		return fmt.Errorf("%q is no order for a node: use kill or start", what)
	}
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}

// Orders are given to a running cluster, by way of its socket.
type Orders struct{ client *http.Client }

// NewOrders makes Orders for the cluster whose socket it is.
func NewOrders(socket string) Orders {
	var dialer net.Dialer
	return Orders{client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Status asks what there is.
func (o Orders) Status(ctx context.Context) (Status, error) {
	var s Status
	body, err := o.do(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("read status: %w", err)
	}
	return s, nil
}

// KillNode ends node n as if its power failed.
func (o Orders) KillNode(ctx context.Context, n int) error {
	_, err := o.do(ctx, http.MethodPost, fmt.Sprintf("/nodes/%d/kill", n), nil)
	return err
}

// StartNode starts node n again and waits until it is ready.
func (o Orders) StartNode(ctx context.Context, n int) error {
	_, err := o.do(ctx, http.MethodPost, fmt.Sprintf("/nodes/%d/start", n), nil)
	return err
}

// Load gives all nodes images from archives.
func (o Orders) Load(ctx context.Context, archives []string) error {
	paths := make([]string, 0, len(archives))
	for _, archive := range archives {
		path, err := filepath.Abs(archive)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return fmt.Errorf("load image: %w", err)
		}
		paths = append(paths, path)
	}
	text, err := json.Marshal(paths)
	if err != nil {
		return fmt.Errorf("encode list of images: %w", err)
	}
	_, err = o.do(ctx, http.MethodPost, "/load", text)
	return err
}

func (o Orders) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://cluster"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("give order: %w", err)
	}
	response, err := o.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("give order to the cluster (is it up?): %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxOrderBytes))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(string(bytes.TrimSpace(text)))
	}
	return text, nil
}
