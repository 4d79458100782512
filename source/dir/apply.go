package dir

import (
	"bytes"
	"fmt"
	"maps"
	"os"
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
// written. The findings are those of the whole set as it is, or would be.
//
// Each file is put in place at once; after a crash amid several, some are new
// and some are old, each of them whole.
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
	faults, findings := e.commit(dryRun)
	if len(faults) > 0 {
		return nil, faults, nil
	}
	return results, nil, findings
}

// Delete removes objects from the folder. Those that are not there are told as NotFound.
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
	faults, findings := e.commit(dryRun)
	if len(faults) > 0 {
		return nil, faults, nil
	}
	return results, nil, findings
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
	for _, p := range slices.Sorted(maps.Keys(e.touched)) {
		name := filepath.Join(s.config.Dir, filepath.FromSlash(p))
		var err error
		if f := e.files[p]; f != nil {
			err = write(name, f.text, modeOf(f))
		} else {
			err = remove(name)
		}
		if err != nil {
			s.reload()
			return []api.Fault{{File: name, Message: fmt.Sprintf("cannot be written: %v; nothing after this file was", err)}}, nil
		}
	}
	s.files = e.files
	s.enforce(w)
	return nil, slices.Clone(s.status.Findings)
}

// modeOf keeps the keys in a file from others' eyes.
func modeOf(f *file) os.FileMode {
	if slices.ContainsFunc(f.result.Objects, func(o *api.Object) bool { return o.Kind == api.KindSecret }) {
		return 0o600
	}
	return 0o644
}
