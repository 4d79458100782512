package kube

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"

	"github.com/lateen-mesh/lateen/cli/show"
	"github.com/lateen-mesh/lateen/deploy/apply"
)

// progress shows steps: on a terminal what is under way stands on the last line, elsewhere each step has lines of its own.
type progress struct {
	out      io.Writer
	terminal bool
	style    show.Style
	open     []string          // the components under way, as they began
	text     map[string]string // what each of them waits for
	shown    bool              // the last line says what is under way
}

func newProgress(out io.Writer) *progress {
	f, isFile := out.(*os.File)
	return &progress{out: out, terminal: isFile && term.IsTerminal(int(f.Fd())), style: show.NewStyle(out), text: map[string]string{}}
}

// tell takes one step, as apply.Config.Tell.
func (p *progress) tell(s apply.Step) {
	switch {
	case s.Warning:
		p.warn(s.Text)
	case !s.Done:
		if p.text[s.Component] = s.Text; !slices.Contains(p.open, s.Component) {
			p.open = append(p.open, s.Component)
		}
		if !p.terminal && s.Text != "" {
			p.line(p.style.Dim.Render("  " + s.Component + ": " + s.Text))
		}
	default:
		p.open = slices.DeleteFunc(p.open, func(c string) bool { return c == s.Component })
		if s.Err != nil {
			p.line(p.style.Bad.Render("×") + " " + s.Component)
		} else {
			p.line(fmt.Sprintf("%s %s: %s %s", p.style.Good.Render("√"), s.Component, s.Text, p.style.Dim.Render(fmt.Sprintf("(%.1f s)", s.Took.Seconds()))))
		}
	}
	p.show()
}

// warn tells something odd.
func (p *progress) warn(text string) { p.line(p.style.Warn.Render("‼") + " " + text) }

// line writes one above what is under way.
func (p *progress) line(text string) {
	p.end()
	_, _ = fmt.Fprintln(p.out, text)
}

// widthDefault is that of a terminal that does not say.
const widthDefault = 80

// show writes what is under way.
func (p *progress) show() {
	if !p.terminal || len(p.open) == 0 {
		return
	}
	p.end()
	var parts []string
	for _, c := range p.open {
		parts = append(parts, strings.TrimSuffix(c+": "+p.text[c], ": "))
	}
	width := widthDefault
	if w, _, err := term.GetSize(int(p.out.(*os.File).Fd())); err == nil && w > 0 {
		width = w
	}
	text := []rune("· " + strings.Join(parts, "; "))
	_, _ = fmt.Fprint(p.out, p.style.Dim.Render(string(text[:min(len(text), width-1)])))
	p.shown = true
}

// end takes away what was under way.
func (p *progress) end() {
	if p.shown {
		_, _ = fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}
