package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/lipgloss/table"
)

// style is how text looks on one output: plain unless it is a terminal, and where NO_COLOR is set.
type style struct {
	plain, head, dim, good, bad, warn, accent lipgloss.Style
}

func newStyle(w io.Writer) style {
	r := lipgloss.NewRenderer(w)
	color := func(light, dark string) lipgloss.Style {
		return r.NewStyle().Foreground(lipgloss.AdaptiveColor{Light: light, Dark: dark})
	}
	return style{
		plain: r.NewStyle(), head: r.NewStyle().Faint(true), dim: r.NewStyle().Faint(true), good: color("#1a7f4b", "#4cc38a"),
		bad: color("#b42318", "#ff6b5e").Bold(true), warn: color("#9a6700", "#e3b341"), accent: color("#1f5fbf", "#7aa7ff"),
	}
}

// table lays rows out under their heads. A head that begins with ">" is that of a column of numbers.
func (s style) table(heads []string, rows [][]string) string {
	right := make([]bool, len(heads))
	names := make([]string, len(heads))
	for i, h := range heads {
		names[i], right[i] = strings.TrimPrefix(h, ">"), strings.HasPrefix(h, ">")
	}
	t := table.New().Border(lipgloss.HiddenBorder()).BorderTop(false).BorderBottom(false).BorderLeft(false).
		BorderRight(false).BorderColumn(false).BorderHeader(false).Headers(names...).Rows(rows...).
		StyleFunc(func(row, col int) lipgloss.Style {
			cell := s.plain
			if row == table.HeaderRow {
				cell = s.head
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

// writeJSON writes what a program reads.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// format checks the value of --output.
func format(value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return usage(fmt.Errorf("--output %q: choose %s", value, strings.TrimPrefix(strings.Join(values, ", "), ", ")))
}
