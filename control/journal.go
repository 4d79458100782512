package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/lateen-mesh/lateen/mesh"
)

// lineMax bounds a line of a journal: what a node may say of itself is bounded by the xDS server.
const lineMax = 4 << 20

// journalSlack is how many lines a journal may have beyond two for each workload before it is written anew.
const journalSlack = 1000

// journal is the registered workloads in a file, a line of JSON for each change, so that a change costs the same
// however many there are. What is written outlives the process, not the machine, with which the workloads end too.
// The registry's lock guards it.
type journal struct {
	path   string
	log    *slog.Logger
	file   *os.File
	lines  int
	broken bool // the file lacks a change
}

// entry is a line of a journal.
type entry struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Workload  *mesh.Workload `json:"workload,omitempty"` // nil: it has left
}

// readJournal returns the workloads of a journal. A line that cannot be read, as the last one after a crash amid the
// writing, is told and left out.
func readJournal(path string, log *slog.Logger) (map[mesh.Ref]*mesh.Workload, error) {
	known := map[mesh.Ref]*mesh.Workload{}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the known workloads: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, lineMax)
	for n := 1; lines.Scan(); n++ {
		var e entry
		err := json.Unmarshal(lines.Bytes(), &e)
		w := e.Workload
		if err == nil && w != nil && (!nameValid(w.ID) || len(w.Addresses) == 0 || w.ID != e.Name || w.Namespace != e.Namespace) {
			err = errors.New("it is no workload")
		}
		ref := mesh.Ref{Kind: mesh.KindWorkload, Namespace: e.Namespace, Name: e.Name}
		switch {
		case err != nil:
			log.Warn("a known workload cannot be read; it comes back when its proxy does", "file", path, "line", n, "cause", err)
		case w == nil:
			delete(known, ref)
		case len(known) < workloadsMax:
			known[ref] = w
		}
	}
	if err := lines.Err(); err != nil {
		log.Warn("the rest of the known workloads cannot be read; they come back when their proxies do", "file", path, "cause", err)
	}
	return known, nil
}

func newJournal(path string, log *slog.Logger) *journal { return &journal{path: path, log: log} }

// add writes a change down, nil for a workload that has left. A failure is told, and mended by rewrite: that the mesh
// goes on is worth more than its memory.
func (j *journal) add(ref mesh.Ref, w *mesh.Workload) {
	if j.broken {
		return // the whole is written anew soon
	}
	text, err := json.Marshal(entry{ref.Namespace, ref.Name, w})
	if err == nil {
		_, err = j.file.Write(append(text, '\n'))
	}
	if err != nil {
		j.fail(err)
	}
	j.lines++
}

func (j *journal) fail(err error) {
	if !j.broken {
		j.log.Warn("the known workloads cannot be written down; after a restart of the control plane they are missing until their proxies have come back",
			"file", j.path, "cause", err)
	}
	j.broken = true
}

// stale reports whether a journal of so many workloads has grown too long.
func (j *journal) stale(workloads int) bool { return j.lines > 2*workloads+journalSlack }

// rewrite makes the journal hold these workloads and nothing else.
func (j *journal) rewrite(list []*mesh.Workload) {
	var text bytes.Buffer
	lines := json.NewEncoder(&text)
	for _, w := range list {
		if err := lines.Encode(entry{w.Namespace, w.ID, w}); err != nil {
			j.fail(err)
			return
		}
	}
	f, err := os.OpenFile(j.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		j.fail(err)
		return
	}
	if _, err = f.Write(text.Bytes()); err == nil {
		err = os.Rename(j.path+".new", j.path)
	}
	if err != nil {
		_ = f.Close()
		j.fail(err)
		return
	}
	j.close()
	j.file, j.lines, j.broken = f, len(list), false
}

func (j *journal) close() {
	if j.file != nil {
		_ = j.file.Close()
	}
}
