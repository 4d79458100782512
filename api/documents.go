package api

import (
	"bytes"
	"strings"
)

// document is the part of a file between two separators.
type document struct {
	start, end int // bytes in the file
	line       int // of its first byte, 1-based
}

// documents splits a file at its separators: lines that begin with "---" or "...". A separator with content behind it
// ("--- # note", "--- {a: 1}") begins the document; a bare one belongs to none.
func documents(data []byte) []document {
	var out []document
	current := document{line: 1}
	pos, line := 0, 1
	flush := func(end int) {
		current.end = end
		if !blank(data[current.start:end]) {
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
				current = document{start: next, line: line + 1}
			} else {
				current = document{start: pos, line: line}
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
