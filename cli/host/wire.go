package host

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// maxRequest bounds a request's JSON, which holds the environment of a command.
	maxRequest = 4 << 20
	// maxFiles bounds the descriptors that come with a request.
	maxFiles = 32
	// sendLimit bounds how long a client that does not read may hold the host up.
	sendLimit = 5 * time.Second
)

// The requests.
const (
	opRun  = "run"
	opList = "list"
	opStop = "stop"
	opEnd  = "end"
)

// The roles of a workload's proxy.
const (
	RoleSidecar = "sidecar"
	RoleGateway = "gateway"
)

// ErrEnding is met by a client that comes while the host ends: the next host will serve it.
var ErrEnding = errors.New("the host is ending")

// Workload is what a client asks the host to run.
type Workload struct {
	Name, Namespace, ServiceAccount string
	Labels                          map[string]string
	// Ports are the ports that the workload serves, by name.
	Ports map[string]uint16
	// Role of its proxy: RoleSidecar or RoleGateway. A gateway captures nothing.
	Role string
	// Command is what runs behind the proxy; a gateway may have none. Env and Dir are its environment and working
	// directory.
	Command []string
	Env     []string
	Dir     string
	// Probe is an http URL on the workload's loopback, as in http://:9080/health, which must answer with 2xx before
	// the workload counts as ready; empty: it is ready when it has been started.
	Probe string
	// Detach lets the workload outlive its client.
	Detach bool
	// Grace bounds how long the command may take to end after SIGTERM; Drain how long the proxy may then take.
	Grace, Drain time.Duration
	// Sockets say what the listening sockets that are handed in are for: a port, or "admin".
	Sockets []string
	// Stdio says that the command's standard input, output and error are handed in, before the sockets.
	Stdio bool
}

// request is what a client sends first, with file descriptors.
type request struct {
	Op string
	Workload
}

// The kinds of Event.
const (
	EventStarted = "started" // The workload has its addresses and its proxy starts.
	EventProxy   = "proxy"   // The proxy is ready, the command starts.
	EventReady   = "ready"   // The command has been started, and its probe has answered.
	EventHealthy = "healthy" // Its probe answers again.
	EventExited  = "exited"  // The command has ended with Code.
	// EventUnhealthy says that the probe does not answer: nobody in the mesh calls the workload until it does.
	EventUnhealthy = "unhealthy"
	EventList      = "list"  // Answer to a list.
	EventDone      = "done"  // Everything asked for is done. The last one.
	EventError     = "error" // It is not, because of Error. The last one.
)

// Event is what the host tells a client.
type Event struct {
	Kind      string
	Addresses []netip.Addr  `json:",omitempty"`
	After     time.Duration `json:",omitempty"` // EventProxy, EventReady: since the proxy's start.
	Code      int           `json:",omitempty"`
	Error     string        `json:",omitempty"`
	ProxyLog  bool          `json:",omitempty"` // EventError: to the host, which adds the proxy's last words.
	Workloads []Status      `json:",omitempty"`
}

// Status is one running workload.
type Status struct {
	Name, Namespace, Role string
	Addresses             []netip.Addr
	Ready                 bool
	Detached              bool
	Command               []string
	// AdminSocket is the path of the proxy's admin socket.
	AdminSocket string
}

// startReport is what a host tells whoever started it.
type startReport struct {
	Error string `json:"error,omitempty"`
}

// events sends events to one client; it may be called concurrently.
type events struct {
	mu   sync.Mutex
	conn net.Conn
}

// send sends an event; a client that has gone misses it.
func (e *events) send(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_ = e.conn.SetWriteDeadline(time.Now().Add(sendLimit))
	_ = json.NewEncoder(e.conn).Encode(ev)
}

// writeRequest sends a request and its files: four bytes of length with the descriptors, then JSON.
func writeRequest(conn *net.UnixConn, req request, files []*os.File) error {
	if len(files) > maxFiles {
		return fmt.Errorf("send %d descriptors to the host: at most %d are taken; use fewer ports", len(files), maxFiles)
	}
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	if len(body) > maxRequest {
		return fmt.Errorf("the request has %d bytes, more than %d: is the environment that large?", len(body), maxRequest)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(head, rights, nil); err != nil {
		return fmt.Errorf("send the request to the host: %w", err)
	}
	if _, err := conn.Write(body); err != nil {
		return fmt.Errorf("send the request to the host: %w", err)
	}
	return nil
}

// readRequest reads what writeRequest wrote. The caller owns the files.
func readRequest(conn *net.UnixConn) (request, []*os.File, error) {
	head, oob := make([]byte, 4), make([]byte, syscall.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := conn.ReadMsgUnix(head, oob)
	if err != nil {
		return request{}, nil, fmt.Errorf("read a request: %w", err)
	}
	files, err := filesOf(oob[:oobn])
	if err == nil && flags&syscall.MSG_CTRUNC != 0 {
		err = fmt.Errorf("read a request: more than %d descriptors", maxFiles)
	}
	if err != nil {
		closeAll(files)
		return request{}, nil, err
	}
	req, err := readBody(conn, head, n)
	if err != nil {
		closeAll(files)
		return request{}, nil, err
	}
	return req, files, nil
}

// readBody reads what follows the first n bytes of the head.
func readBody(r io.Reader, head []byte, n int) (req request, err error) {
	if _, err := io.ReadFull(r, head[n:]); err != nil {
		return req, fmt.Errorf("read a request: %w", err)
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxRequest {
		return req, fmt.Errorf("read a request: %d bytes are more than %d", size, maxRequest)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return req, fmt.Errorf("read a request: %w", err)
	}
	if err := json.Unmarshal(body, &req); err != nil {
		return req, fmt.Errorf("read a request: %w", err)
	}
	return req, nil
}

// filesOf returns the descriptors of control messages.
func filesOf(oob []byte) ([]*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read the descriptors of a request: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("read the descriptors of a request: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed in"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
