package api

import (
	"bytes"
	"strings"
)

// Document is the part of a file between two separators.
type Document struct {
	Start, End int // bytes in the file
	Line       int // of its first byte, 1-based
}

// Documents splits a file at its separators: lines that begin with "---" or "...". A separator with content behind it
// ("--- # note", "--- {a: 1}") begins the document; a bare one belongs to none.
// One that holds nothing but comments is left out.
func Documents(data []byte) []Document {
	var out []Document
	current := Document{Line: 1}
	pos, line := 0, 1
	flush := func(end int) {
		current.End = end
		if !blank(data[current.Start:end]) {
			out = append(out, current)
		}
	}
	for pos < len(data) {
		next := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			next = pos + i + 1
		}
		rest, separates := separator(data[pos:next])
		if separates {
			flush(pos)
			if rest == "" {
				current = Document{Start: next, Line: line + 1}
			} else {
				current = Document{Start: pos, Line: line}
			}
		}
		pos, line = next, line+1
	}
	flush(len(data))
	return out
}

func separator(line []byte) (rest string, ok bool) {
	s := strings.TrimRight(string(line[:min(len(line), 256)]), " \t\r\n")
	for _, mark := range []string{"---", "..."} {
		if after, found := strings.CutPrefix(s, mark); found && (after == "" || after[0] == ' ' || after[0] == '\t') {
			rest = strings.TrimSpace(after)
			if strings.HasPrefix(rest, "#") {
				rest = ""
			}
			return rest, true
		}
	}
	return "", false
}

// blank reports whether a document holds nothing but blank lines, comments and directives.
func blank(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}
