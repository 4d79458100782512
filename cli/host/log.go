package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxLog bounds a log file; there are at most two for each process, the one before having the name with oldSuffix.
	maxLog    = 1 << 20
	oldSuffix = ".old"
	// logChunk is how much of a process's words is taken at once, maxChunks how often when they are waited for.
	logChunk  = 8 << 10
	maxChunks = 64
	// maxTail and tailLines bound what is shown of a log.
	maxTail   = 64 << 10
	tailLines = 12
)

// logFile is a log that begins anew when it is full, and keeps what was before once. It may be written concurrently.
type logFile struct {
	path string
	// renewed, if not nil, is told of each new file.
	renewed func(*os.File)

	mu   sync.Mutex
	file *os.File
	size int
}

// newLog begins a log; what an earlier process of the name has left is removed.
func newLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	if err := os.Remove(path + oldSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove an old log: %w", err)
	}
	return l, l.begin()
}

// begin begins a new file in place of the present one.
func (l *logFile) begin() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("begin a log: %w", err)
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.size = file, 0
	if l.renewed != nil {
		l.renewed(file)
	}
	return nil
}

// Write writes p, in the next file if it does not fit into this one. What cannot be written is lost: a full disk must
// not stop anybody's work.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+len(p) > maxLog && l.size > 0 {
		err := os.Rename(l.path, l.path+oldSuffix)
		if err = errors.Join(err, l.begin()); err != nil {
			return 0, err
		}
	}
	l.size += len(p)
	return l.file.Write(p)
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.file.Close()
}

// logPipe is how a process that does not bound its log itself writes one.
type logPipe struct {
	log *logFile
	in  *os.File
	out *os.File // For the process's standard output and error.
	// done is closed when nothing is read any more.
	done chan struct{}

	mu    sync.Mutex // Held from reading to writing, for the order of both.
	chunk [logChunk]byte
}

// newLogPipe begins a log and reads for it until close.
func newLogPipe(path string) (*logPipe, error) {
	log, err := newLog(path)
	if err != nil {
		return nil, err
	}
	in, out, err := os.Pipe()
	if err != nil {
		log.close()
		return nil, fmt.Errorf("make a pipe for a log: %w", err)
	}
	p := &logPipe{log: log, in: in, out: out, done: make(chan struct{})}
	go p.read() // Ends with close.
	return p, nil
}

// read takes what comes until all writers are gone, or the pipe is closed.
func (p *logPipe) read() {
	defer close(p.done)
	raw, err := p.in.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		for {
			switch err := p.take(int(fd)); {
			case errors.Is(err, unix.EAGAIN):
				return false
			case err != nil:
				return true
			}
		}
	})
}

// take passes on what is in the pipe, at most one chunk.
func (p *logPipe) take(fd int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := unix.Read(fd, p.chunk[:])
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return err
	case n == 0:
		return io.EOF
	}
	_, _ = p.log.Write(p.chunk[:n])
	return nil
}

// catchUp returns when all that a process that has ended has said is in the log.
func (p *logPipe) catchUp() {
	raw, err := p.in.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for range maxChunks {
			if p.take(int(fd)) != nil {
				return
			}
		}
	})
}

// lastWords is catchUp, and then the end of the log.
func (p *logPipe) lastWords() string {
	p.catchUp()
	return LastLines(p.log.path)
}

// close ends the log, whoever still has the pipe open.
func (p *logPipe) close() {
	p.catchUp()
	_, _ = p.out.Close(), p.in.Close()
	<-p.done
	p.log.close()
}

// LastLines returns the end of a log file, indented, to be shown in a message.
func LastLines(path string) string {
	text, err := tail(path)
	if err != nil {
		return "  (no log: " + err.Error() + ")"
	}
	if old, err := tail(path + oldSuffix); err == nil {
		text = old + text
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	return "  " + strings.Join(lines, "\n  ")
}

// tail reads the end of a file.
func tail(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > maxTail {
		_, _ = f.Seek(-maxTail, io.SeekEnd)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTail))
	return string(text), err
}
