package dir

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source"
)

// Outcome is what became of an object.
type Outcome string

// The outcomes, in the words of kubectl.
const (
	Created    Outcome = "created"
	Configured Outcome = "configured"
	Unchanged  Outcome = "unchanged"
	Deleted    Outcome = "deleted"
	NotFound   Outcome = "not found"
)

// Result tells what became of one object.
type Result struct {
	Ref     api.Ref
	Outcome Outcome
}

// Apply puts objects into the folder: each in a file of its own,
// namespace/kind-name.yaml, or in the place of the document that holds it
// already. name stands for the documents in messages. All of it is in force
// when Apply returns without faults; with faults, or dryRun, nothing is
// written. The findings are those about the objects, at their place in docs,
// and those about others that the change brings, or would bring.
//
// If a file cannot be written none is. Only after a crash amid several some are
// new and some are old, each of them whole. A file with a Secret in it is for
// its owner's eyes only, whoever could read it before.
func (s *Store) Apply(docs []byte, name string, dryRun bool) ([]Result, []api.Fault, []source.Finding) {
	wanted := api.Decode(name, docs)
	if len(wanted.Faults) > 0 {
		return nil, wanted.Faults, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, faults := s.edit()
	if len(faults) > 0 {
		return nil, faults, nil
	}
	var results []Result
	for _, o := range wanted.Objects {
		outcome, err := e.put(o, docs)
		if err != nil {
			f := o.Fault(err.Error())
			return nil, []api.Fault{f}, nil
		}
		results = append(results, Result{o.Ref, outcome})
	}
	before := s.status.Findings
	faults, findings := e.commit(dryRun)
	if len(faults) > 0 {
		return nil, faults, nil
	}
	return results, nil, telling(findings, before, wanted.Objects)
}

// Delete removes objects from the folder. Those that are not there are told as NotFound. The findings are those that
// the change brings, or would bring.
func (s *Store) Delete(refs []api.Ref, dryRun bool) ([]Result, []api.Fault, []source.Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, faults := s.edit()
	if len(faults) > 0 {
		return nil, faults, nil
	}
	var results []Result
	for _, ref := range refs {
		outcome, err := e.cut(ref)
		if err != nil {
			return nil, []api.Fault{{Object: ref.String(), Message: err.Error()}}, nil
		}
		results = append(results, Result{ref, outcome})
	}
	before := s.status.Findings
	faults, findings := e.commit(dryRun)
	if len(faults) > 0 {
		return nil, faults, nil
	}
	return results, nil, telling(findings, before, nil)
}

// DeleteDocs removes the objects that documents hold.
func (s *Store) DeleteDocs(docs []byte, name string, dryRun bool) ([]Result, []api.Fault, []source.Finding) {
	wanted := api.Decode(name, docs)
	if len(wanted.Faults) > 0 {
		return nil, wanted.Faults, nil
	}
	var refs []api.Ref
	for _, o := range wanted.Objects {
		refs = append(refs, o.Ref)
	}
	return s.Delete(refs, dryRun)
}

// edit is a change of the folder that is being prepared in memory.
type edit struct {
	store   *Store
	files   map[string]*file
	touched map[string]bool
}

// edit begins with the folder as it is now.
func (s *Store) edit() (*edit, []api.Fault) {
	files, faults := s.scan()
	if len(faults) > 0 {
		return nil, faults
	}
	return &edit{s, files, map[string]bool{}}, nil
}

// find returns the object of that name and the path of its file.
func (e *edit) find(ref api.Ref) (string, *api.Object) {
	for _, p := range slices.Sorted(maps.Keys(e.files)) {
		for _, o := range e.files[p].result.Objects {
			if o.Ref == ref {
				return p, o
			}
		}
	}
	return "", nil
}

func (e *edit) replace(p string, text []byte) {
	e.touched[p] = true
	if text == nil {
		delete(e.files, p)
		return
	}
	e.files[p] = e.store.parse(p, text)
}

// put makes o part of the folder. docs are the documents that it is from.
func (e *edit) put(o *api.Object, docs []byte) (Outcome, error) {
	text, err := textOf(o, docs)
	if err != nil {
		return "", err
	}
	p, old := e.find(o.Ref)
	if old == nil {
		if admit := e.store.config.Admit; admit != nil {
			if err := admit(o); err != nil {
				return "", err
			}
		}
		p = home(o.Ref)
		if f := e.files[p]; f != nil {
			text = slices.Concat(closed(f.text), []byte("---\n"), text)
		}
		e.replace(p, text)
		return Created, nil
	}
	before, err := api.Encode(old)
	if err != nil {
		return "", err
	}
	after, err := api.Encode(o)
	if err != nil {
		return "", err
	}
	if bytes.Equal(before, after) {
		return Unchanged, nil
	}
	if err := editable(p, old); err != nil {
		return "", err
	}
	whole := e.files[p].text
	if bytes.HasPrefix(whole[old.Start:old.End], []byte("---")) {
		text = append([]byte("---\n"), text...)
	}
	e.replace(p, slices.Concat(whole[:old.Start], text, whole[old.End:]))
	return Configured, nil
}

// cut removes an object; the file goes with its last document.
func (e *edit) cut(ref api.Ref) (Outcome, error) {
	p, old := e.find(ref)
	if old == nil {
		return NotFound, nil
	}
	text := e.files[p].text
	alone := len(e.files[p].result.Objects) == 1 && len(e.files[p].result.Faults) == 0
	switch {
	case alone:
		e.replace(p, nil)
		return Deleted, nil
	case editable(p, old) != nil:
		return "", editable(p, old)
	}
	start, end := old.Start, old.End
	if head := bytes.TrimRight(text[:start], "\r\n"); start > 0 && bytes.HasSuffix(head, []byte("---")) {
		start = len(head) - len("---")
	} else if rest, ok := bytes.CutPrefix(text[end:], []byte("---\n")); ok && start == 0 {
		end = len(text) - len(rest)
	}
	e.replace(p, slices.Concat(text[:start], text[end:]))
	return Deleted, nil
}

// editable tells why a document cannot be replaced in place.
func editable(p string, o *api.Object) error {
	switch {
	case o.InList:
		return fmt.Errorf("is an item of the List at %s:%d; change it there, or write it as a document of its own", o.File, o.Line)
	case path.Ext(p) == ".json":
		return fmt.Errorf("is in the JSON file %s; change it there", o.File)
	}
	return nil
}

// textOf is an object's document as the user wrote it, or our own where it is not one by itself.
func textOf(o *api.Object, docs []byte) ([]byte, error) {
	if o.InList || path.Ext(o.File) == ".json" {
		return api.Encode(o)
	}
	return closed(docs[o.Start:o.End]), nil
}

// closed is a text that ends with the end of a line.
func closed(text []byte) []byte {
	text = slices.Clone(text)
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	return text
}

// home is the path of a new object's file.
func home(r api.Ref) string {
	folder := r.Namespace
	if folder == "" {
		folder = r.Name
	}
	return path.Join(folder, strings.ToLower(r.Kind)+"-"+r.Name+".yaml")
}

// commit judges the folder as it would be, writes it unless dryRun, and puts it in force.
func (e *edit) commit(dryRun bool) ([]api.Fault, []source.Finding) {
	s := e.store
	w := gather(e.files)
	if len(w.faults) > 0 {
		return w.faults, nil
	}
	if dryRun {
		trial := source.NewAllocator()
		trial.Restore(s.addresses.Snapshot())
		set := source.New(source.Config{ClusterDomain: s.config.ClusterDomain, Allocator: trial})
		set.Replace(w.objects)
		return nil, append(source.Warnings(w.warnings), set.Findings()...)
	}
	if fault := e.write(); fault != nil {
		s.reload()
		return []api.Fault{*fault}, nil
	}
	s.files, s.folder = e.files, s.seen
	s.enforce(w)
	return nil, slices.Clone(s.status.Findings)
}

// write writes all files that differ, or none.
func (e *edit) write() *api.Fault {
	var x exchange
	defer x.clean()
	for _, p := range slices.Sorted(maps.Keys(e.touched)) {
		name := filepath.Join(e.store.config.Dir, filepath.FromSlash(p))
		var err error
		if f := e.files[p]; f != nil {
			err = x.stage(name, f.text, modeOf(f))
		} else {
			err = x.stageRemoval(name)
		}
		if err != nil {
			return &api.Fault{File: name, Message: fmt.Sprintf("nothing was changed, because it cannot be written: %v", err)}
		}
	}
	if err := x.place(); err != nil {
		return &api.Fault{File: e.store.config.Dir, Message: fmt.Sprintf("nothing was changed, because not all can be written: %v", err)}
	}
	return nil
}

// modeOf keeps the keys in a file from others' eyes.
func modeOf(f *file) fs.FileMode {
	if slices.ContainsFunc(f.result.Objects, func(o *api.Object) bool { return o.Kind == api.KindSecret }) {
		return modePrivate
	}
	return modePublic
}

// telling picks from findings of the whole set those that whoever changed it should hear of: those about the objects
// that were applied, at their place in what the user has written, and those that were not there before.
func telling(found, before []source.Finding, applied []*api.Object) []source.Finding {
	byName := map[string]*api.Object{}
	for _, o := range applied {
		byName[o.Ref.String()] = o
	}
	known := map[source.Finding]bool{}
	for _, f := range before {
		known[placeless(f)] = true
	}
	var out []source.Finding
	for _, f := range found {
		if o := byName[f.Object]; o != nil {
			f.Fault = o.Fault(f.Message, f.Path)
		} else if known[placeless(f)] {
			continue
		}
		out = append(out, f)
	}
	return out
}

// placeless is a finding without line and column, which move when something else in its file changes.
func placeless(f source.Finding) source.Finding {
	f.Line, f.Column = 0, 0
	return f
}
