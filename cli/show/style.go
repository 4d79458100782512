// Package show is how lateen's commands show what they found: tables, colours, JSON, and the proxies' states and orders,
// the same wherever the mesh is.
//
// In come values; out go texts. The package must not know where they come from. Everything but a Style's own output may
// be used by any number of goroutines.
package show

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/lipgloss/table"
)

// Style is how text looks on one output: plain unless it is a terminal, and where NO_COLOR is set.
type Style struct {
	Plain, Head, Dim, Good, Bad, Warn, Accent lipgloss.Style
}

// NewStyle is the style of what is written to w.
func NewStyle(w io.Writer) Style {
	r := lipgloss.NewRenderer(w)
	color := func(light, dark string) lipgloss.Style {
		return r.NewStyle().Foreground(lipgloss.AdaptiveColor{Light: light, Dark: dark})
	}
	return Style{
		Plain: r.NewStyle(), Head: r.NewStyle().Faint(true), Dim: r.NewStyle().Faint(true), Good: color("#1a7f4b", "#4cc38a"),
		Bad: color("#b42318", "#ff6b5e").Bold(true), Warn: color("#9a6700", "#e3b341"), Accent: color("#1f5fbf", "#7aa7ff"),
	}
}

// Table lays rows out under their heads. A head that begins with ">" is that of a column of numbers.
func (s Style) Table(heads []string, rows [][]string) string {
	right := make([]bool, len(heads))
	names := make([]string, len(heads))
	for i, h := range heads {
		names[i], right[i] = strings.TrimPrefix(h, ">"), strings.HasPrefix(h, ">")
	}
	t := table.New().Border(lipgloss.HiddenBorder()).BorderTop(false).BorderBottom(false).BorderLeft(false).
		BorderRight(false).BorderColumn(false).BorderHeader(false).Headers(names...).Rows(rows...).
		StyleFunc(func(row, col int) lipgloss.Style {
			cell := s.Plain
			if row == table.HeaderRow {
				cell = s.Head
			}
			if col < len(right) && right[col] {
				cell = cell.Align(lipgloss.Right)
			}
			if col < len(heads)-1 {
				cell = cell.PaddingRight(2)
			}
			return cell
		})
	var out strings.Builder
	for line := range strings.Lines(t.String() + "\n") {
		out.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return out.String()
}

// JSON writes what a program reads.
func JSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// Choice checks the value of the flag --output; an empty one of values is that of no flag.
func Choice(value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return fmt.Errorf("--output %q: choose %s", value, strings.TrimPrefix(strings.Join(values, ", "), ", "))
}
