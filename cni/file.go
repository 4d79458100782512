package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// fileMax bounds in bytes what is read of a file that somebody else writes.
	fileMax = 1 << 20
	// editTries bounds how often an edit gives way to others who write the same file.
	editTries = 20
)

// errBusy is of a file that others write again and again; they are heard when they are done.
var errBusy = errors.New("others write it all the time")

// readFile reads a whole file, unless it is too large to be meant.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, fileMax+1))
	if err != nil {
		return nil, err
	}
	if len(text) > fileMax {
		return nil, fmt.Errorf("%s has more than %d KiB", path, fileMax>>10)
	}
	return text, nil
}

// edit changes a file that others may write at the same time. Nobody sees half of it, and nothing that others write
// gets lost.
func edit(path string, change func([]byte) ([]byte, error)) error {
	for range editTries {
		base, err := readFile(path)
		if err != nil {
			return err
		}
		next, err := change(base)
		if err != nil {
			return fmt.Errorf("edit %s: %w", path, err)
		}
		if bytes.Equal(next, base) {
			return nil
		}
		if err := replace(path, base, next); err != nil {
			return fmt.Errorf("edit %s: %w", path, err)
		}
	}
	return fmt.Errorf("edit %s: %w", path, errBusy)
}

// replace puts next in the place of base. It exchanges the two files and looks at what came out: if that is not what was
// expected, somebody has written it meanwhile, or is still writing into it, and it goes back.
func replace(path string, base, next []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	temp, err := temporary(filepath.Dir(path), next, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp) }()
	put, expected := next, base
	for range editTries {
		if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
			return fmt.Errorf("exchange files: %w", err)
		}
		out, err := readFile(temp)
		if err != nil {
			return err
		}
		if bytes.Equal(out, expected) {
			return nil
		}
		put, expected = out, put
	}
	return errBusy
}

// write makes a file of that content, whole or not at all.
func write(path string, text []byte, mode fs.FileMode) error {
	temp, err := temporary(filepath.Dir(path), text, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return nil
}

// temporary makes a file which container runtimes pass over, by its name.
func temporary(folder string, text []byte, mode fs.FileMode) (path string, err error) {
	f, err := os.CreateTemp(folder, "."+Name+"-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}
