package keep

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

const (
	// tailLines and tailBytes bound what of a component's log an error cites.
	tailLines = 8
	tailBytes = 8 << 10
)

// process is a component of the control plane, or a node.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	// done is closed when it has ended; err then says how.
	done chan struct{}
	err  error
}

// spawn starts a command whose errors, and output if nobody else wants it, go to the component's log.
func (k *Keeper) spawn(name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, log: k.cfg.Layout.Log(name), cmd: cmd, done: make(chan struct{})}
	file, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer file.Close()
	cmd.Stderr = file
	if cmd.Stdout == nil {
		cmd.Stdout = file
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// kill ends it at once and waits until it has.
func (p *process) kill() {
	// It fails only if there is nothing to kill any more.
	_ = p.cmd.Process.Kill()
	<-p.done
}

// ended is the error of a component that was not to end.
func (p *process) ended() error {
	how := p.err
	if how == nil {
		how = errors.New("as if it was done")
	}
	return fmt.Errorf("%s has ended: %w; the last lines of %s:\n%s", p.name, how, p.log, tail(p.log))
}

// tail is the end of a log, indented.
func tail(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > tailBytes {
		if _, err := file.Seek(-tailBytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(io.LimitReader(file, tailBytes))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	var out strings.Builder
	for _, line := range lines {
		fmt.Fprintf(&out, "  %s\n", line)
	}
	return strings.TrimRight(out.String(), "\n")
}
