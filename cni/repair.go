package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

// resultsMax bounds how many results are looked at; Kubernetes plans for 110 pods on a node.
const resultsMax = 4096

// result is what libcni keeps of each network that it has made (its file format cniCacheV1).
type result struct {
	Kind         string `json:"kind"`
	Network      string `json:"netns"` // since libcni 1.3
	Capabilities struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"capabilityArgs"`
	Result struct {
		Interfaces []struct {
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
	} `json:"result"`
}

// network is the path of the pod's network namespace; empty if it is not told. What the network plugin has answered
// names it beside the interface inside (CNI specification, "Success").
func (r *result) network() string {
	for _, f := range r.Result.Interfaces {
		if r.Network == "" && f.Sandbox != "" {
			return f.Sandbox
		}
	}
	return r.Network
}

// repair sets the rules of pods that started while the plugin was not there. Their container lateen-validation fails
// until then, so that they have not run; when the kubelet starts it again it passes. Pods that run by the rules of an
// earlier version get those of this one; their open connections stay.
func (i *Installer) repair(watcher *fsnotify.Watcher) error {
	if err := watcher.Add(i.config.Results); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("watch %s: %w", i.config.Results, err)
	}
	files, err := os.ReadDir(i.config.Results)
	if err != nil {
		return fmt.Errorf("look for pods that started before: %w", err)
	}
	if len(files) > resultsMax {
		return fmt.Errorf("look for pods that started before: more than %d files in %s", resultsMax, i.config.Results)
	}
	captured := make(map[string]bool, len(files))
	var faults []error
	for _, f := range files {
		done := i.captured[f.Name()]
		if !done {
			if done, err = i.repairPod(filepath.Join(i.config.Results, f.Name())); err != nil {
				faults = append(faults, fmt.Errorf("repair the pod of %s: %w", f.Name(), err))
			}
		}
		captured[f.Name()] = done
	}
	i.captured = captured
	return errors.Join(faults...)
}

// repairPod sets the rules of one pod unless they are there. It reports whether there is nothing left to do for it.
func (i *Installer) repairPod(path string) (done bool, err error) {
	text, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // it ended meanwhile
	} else if err != nil {
		return false, err
	}
	var r result
	if json.Unmarshal(text, &r) != nil {
		return false, nil // it is being written, and will be heard of again
	}
	capture, ok := r.Capabilities.Annotations[redirect.CaptureAnnotation]
	if r.Kind != "cniCacheV1" || !ok {
		return true, nil
	}
	config, err := Read(capture)
	if err != nil {
		return false, err
	}
	network := r.network()
	if network == "" {
		i.config.Log.Warn("whether a pod is captured cannot be seen, as its network namespace is not told; "+
			"if its container lateen-validation fails, delete the pod", "result", path)
		return true, nil
	}
	folder := filepath.Dir(network)
	if _, err := os.Stat(folder); err != nil {
		return false, fmt.Errorf("enter its network (is %s mounted?): %w", folder, err)
	}
	ns, err := openNetwork(network)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // it has ended, and its result was left behind
	} else if err != nil {
		return false, err
	}
	defer func() { _ = ns.Close() }()
	err = netns.Do(ns, func() error {
		if check(config) == nil {
			return nil
		}
		i.config.Log.Info("the rules of a pod were not there, or those of another version: they are set now", "netns", network)
		return Init(config)
	})
	return err == nil, err
}
