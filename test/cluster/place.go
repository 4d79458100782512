package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/test/cluster/cgroup"
	"github.com/lateen-mesh/lateen/test/cluster/keep"
	"github.com/lateen-mesh/lateen/test/cluster/layout"
)

const (
	// recordName is the file in a cluster's folder whose lock says that it is up.
	recordName = "cluster.json"
	// endPatience bounds how long a cluster may take to end.
	endPatience = 30 * time.Second
	interval    = 20 * time.Millisecond
)

// errUp says that a cluster is up; errDown that it is not.
var (
	errUp   = errors.New("it is up already; bin/cluster down ends it")
	errDown = errors.New("it is not up: make cluster")
)

// place is where on this machine a cluster is.
type place struct{ name, folder string }

func (p *place) own() string { return filepath.Join(p.folder, p.name) }

// record tells other processes of a cluster that is up.
type record struct {
	layout.Layout
	// Process is what keeps the cluster; Keeper is the first process in its namespaces.
	Process int `json:"process"`
	Keeper  int `json:"keeper"`
	// Kubeconfig is the administrator's; Network a file that is its network namespace.
	Kubeconfig string `json:"kubeconfig"`
	Network    string `json:"network"`
	// Balancers are the addresses of Services of type LoadBalancer.
	Balancers string `json:"balancers"`
}

// claim locks the cluster's folder for this process.
func (p *place) claim() (*os.File, error) {
	path := filepath.Join(p.own(), recordName)
	for {
		if err := os.MkdirAll(p.own(), 0o755); err != nil {
			return nil, fmt.Errorf("make folder of cluster %s: %w", p.name, err)
		}
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the folder was removed just now
		}
		if err != nil {
			return nil, fmt.Errorf("claim cluster %s: %w", p.name, err)
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			file.Close()
			return nil, fmt.Errorf("claim cluster %s: %w", p.name, errUp)
		}
		// Whoever had the lock before may have removed the file.
		if same(file, path) {
			return file, nil
		}
		file.Close()
	}
}

func same(file *os.File, path string) bool {
	held, err := file.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(held, now)
}

// clear removes what is left of a cluster, but not its claim and, if they are to stay, its logs. Its processes have ended
// or are about to.
func (p *place) clear(keepLogs bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	err := cgroup.Remove(ctx, keep.Group(layout.Layout{Name: p.name}))
	entries, failure := os.ReadDir(p.own())
	err = errors.Join(err, failure)
	for _, entry := range entries {
		if entry.Name() == recordName || keepLogs && entry.Name() == logsName {
			continue
		}
		err = errors.Join(err, os.RemoveAll(filepath.Join(p.own(), entry.Name())))
	}
	if err != nil {
		return fmt.Errorf("clear cluster %s: %w", p.name, err)
	}
	return nil
}

// release gives the claim up. The folders go if nothing is in them.
func (p *place) release(claimed *os.File) {
	_ = os.Remove(claimed.Name())
	_ = os.Remove(p.own())
	_ = os.Remove(p.folder)
	claimed.Close()
}

// find reads the record of a cluster that is up.
func (p *place) find() (record, error) {
	var r record
	file, err := os.Open(filepath.Join(p.own(), recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("cluster %s: %w", p.name, errDown)
	}
	if err != nil {
		return r, fmt.Errorf("find cluster %s: %w", p.name, err)
	}
	defer file.Close()
	if unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return r, fmt.Errorf("cluster %s: %w", p.name, errDown)
	}
	if err := json.NewDecoder(file).Decode(&r); err != nil {
		return r, fmt.Errorf("cluster %s is only just coming up, or going down: %w", p.name, err)
	}
	return r, nil
}

// down ends a cluster, or what a cluster that was killed has left.
func (p *place) down(ctx context.Context) error {
	r, err := p.find()
	if err == nil {
		_ = syscall.Kill(r.Process, syscall.SIGTERM) // it may be gone just now
	}
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	for {
		claimed, err := p.claim()
		if err == nil {
			defer p.release(claimed)
			return p.clear(false)
		}
		if !errors.Is(err, errUp) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end cluster %s: process %d does not: kill -9 it, and try again", p.name, r.Process)
		case <-time.After(interval):
		}
	}
}
