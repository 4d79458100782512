package proxy

import (
	"context"
	"log/slog"
	"sync"

	"github.com/lateen-mesh/lateen/telemetry/accesslog"
)

// logFiles are the files that access logs go to, each with its one writer, and the proxy's own log.
type logFiles struct {
	logger *slog.Logger
	// loops is the same log for event loops, and for lines that a peer can cause at will; see ration.
	loops  *slog.Logger
	ration *ration

	mu      sync.Mutex
	ctx     context.Context // the life of writers that are opened while the proxy runs
	group   *sync.WaitGroup
	writers map[string]*accesslog.Writer
}

func (l *logFiles) init(logger *slog.Logger) {
	l.logger, l.ration = logger, newRation(logger.Handler())
	l.loops = slog.New(l.ration)
}

// start lets writers run until ctx ends.
func (l *logFiles) start(ctx context.Context, group *sync.WaitGroup) {
	group.Go(func() { l.ration.run(ctx) })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx, l.group, l.writers = ctx, group, map[string]*accesslog.Writer{}
}

// open returns the writer of a file, and starts it at the first call. It touches no file: event loops call it.
func (l *logFiles) open(path string) (*accesslog.Writer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.writers[path]; w != nil {
		return w, nil
	}
	w, err := accesslog.NewWriter(accesslog.WriterConfig{Path: path, Log: l.logger})
	if err != nil {
		return nil, err
	}
	l.writers[path] = w
	l.group.Go(func() {
		if err := w.Run(l.ctx); err != nil {
			l.logger.Error("access log ended", "path", path, "cause", err)
		}
	})
	return w, nil
}

// reopen opens all files anew, after a log rotation has moved them away. It does not wait for that.
func (l *logFiles) reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.writers {
		w.Reopen()
	}
}

// dropped counts the lines that found no room, over all files.
func (l *logFiles) dropped() (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.writers {
		n += w.Dropped()
	}
	return n
}
