package stream

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// lines is what a codec would write of h: the lines that came as such as they are, the others in brackets.
func lines(h *Head) (out []string) {
	for i := 0; i < h.Len(); i++ {
		if p, n := h.Lines(i); n > 0 {
			out = append(out, string(p))
			i += n - 1
			continue
		}
		name, value := h.At(i)
		out = append(out, "["+string(name)+"="+string(value)+"]")
	}
	return out
}

func parsed() *Head {
	h := &Head{}
	h.Reset()
	h.SetPathString("/")
	h.AddLine([]byte("Accept: */*\r\n"), len("Accept"))
	h.AddLine([]byte("X-A: 1\r\n"), len("X-A"))
	h.AddLine([]byte("x-b: 2\r\n"), len("x-b"))
	h.AddLine([]byte("x-a: 3\r\n"), len("x-a"))
	return h
}

func TestLinesAreGivenBackUntilTheyChange(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Head)
		want   []string
	}{
		{"as they came", func(*Head) {}, []string{"Accept: */*\r\nX-A: 1\r\nx-b: 2\r\nx-a: 3\r\n"}},
		{"one added", func(h *Head) { h.AddString("x-c", "4") }, []string{"Accept: */*\r\nX-A: 1\r\nx-b: 2\r\nx-a: 3\r\n", "[x-c=4]"}},
		{"one deleted", func(h *Head) { h.Del("x-b") }, []string{"Accept: */*\r\nX-A: 1\r\n", "x-a: 3\r\n"}},
		{"two of a name deleted", func(h *Head) { h.Del("x-a") }, []string{"Accept: */*\r\n", "x-b: 2\r\n"}},
		{"one set", func(h *Head) { h.Set("x-b", []byte("5")) }, []string{"Accept: */*\r\nX-A: 1\r\n", "[x-b=5]", "x-a: 3\r\n"}},
		{"two of a name set", func(h *Head) { h.Set("x-a", []byte("5")) }, []string{"Accept: */*\r\n", "[X-A=5]", "x-b: 2\r\n"}},
		{"a line set", func(h *Head) { h.SetLine("x-b", []byte("5")) }, []string{"Accept: */*\r\nX-A: 1\r\n", "x-b: 5\r\n", "x-a: 3\r\n"}},
		{"a line set for two of a name", func(h *Head) { h.SetLine("x-a", nil) }, []string{"Accept: */*\r\n", "x-a: \r\n", "x-b: 2\r\n"}},
		{
			"new lines set", func(h *Head) { h.SetLine("x-c", []byte("4")); h.SetLine("x-d", []byte("5")) },
			[]string{"Accept: */*\r\nX-A: 1\r\nx-b: 2\r\nx-a: 3\r\nx-c: 4\r\nx-d: 5\r\n"},
		},
		{
			"a line after something else", func(h *Head) { h.SetPathString("/b"); h.AddLine([]byte("y: z\r\n"), 1) },
			[]string{"Accept: */*\r\nX-A: 1\r\nx-b: 2\r\nx-a: 3\r\n", "y: z\r\n"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := parsed()
			c.change(h)
			if diff := cmp.Diff(c.want, lines(h)); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFieldsAreFoundWithoutRegardToCase(t *testing.T) {
	h := parsed()
	for name, want := range map[string]string{"accept": "*/*", "x-a": "1", "x-b": "2"} {
		if v, ok := h.Get(name); !ok || string(v) != want {
			t.Errorf("Get(%q) = %q, %v; want %q", name, v, ok, want)
		}
	}
	for _, name := range []string{"", "x-c", "accep", "x-a:"} {
		if v, ok := h.Get(name); ok {
			t.Errorf("Get(%q) = %q; there is none", name, v)
		}
		if h.Del(name) {
			t.Errorf("Del(%q) says that there was one", name)
		}
	}
	h.Set("x-c", []byte("6"))
	if v, ok := h.Get("x-c"); !ok || string(v) != "6" {
		t.Errorf("after Set, Get = %q, %v", v, ok)
	}
}

func TestSwapAndCopy(t *testing.T) {
	a, b := parsed(), &Head{}
	b.Reset()
	b.Swap(a)
	if a.Len() != 0 || b.Len() != 4 || string(b.Path()) != "/" {
		t.Fatalf("after Swap: %d and %d fields, path %q", a.Len(), b.Len(), b.Path())
	}
	a.CopyFrom(b)
	b.Set("x-a", []byte("9"))
	b.Reset()
	b.AddLine([]byte("Zzzzzz: */*\r\n"), 6)
	if v, ok := a.Get("accept"); !ok || string(v) != "*/*" {
		t.Errorf("the copy shares memory: accept = %q, %v", v, ok)
	}
}
