package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var pointerUnescape = strings.NewReplacer("~1", "/", "~0", "~")

// apply changes a YAML tree in place, comments and all.
func (p Patch) apply(root *yaml.Node) error {
	for _, op := range p {
		steps := strings.Split(op.Path, "/")[1:]
		for i := range steps {
			steps[i] = pointerUnescape.Replace(steps[i])
		}
		last := len(steps) - 1
		n := resolve(root)
		for _, step := range steps[:last] {
			if n != nil && n.Kind == yaml.SequenceNode {
				i, err := strconv.Atoi(step)
				if err != nil {
					n = nil
					break
				}
				n = element(n, i)
			} else {
				n = child(n, step)
			}
		}
		if n == nil {
			return fmt.Errorf("%s %s: there is no such place", op.Op, op.Path)
		}
		if err := op.apply(n, steps[last]); err != nil {
			return fmt.Errorf("%s %s: %w", op.Op, op.Path, err)
		}
	}
	return nil
}

// apply changes one item of a list or field of an object.
func (op Operation) apply(n *yaml.Node, name string) error {
	var value *yaml.Node
	if op.Op != "remove" {
		text, err := json.Marshal(op.Value)
		if err != nil {
			return err
		}
		value = &yaml.Node{}
		if err := yaml.Unmarshal(text, value); err != nil { // JSON is YAML
			return err
		}
		value = value.Content[0]
		plain(value)
	}
	switch n.Kind {
	case yaml.SequenceNode:
		i, err := strconv.Atoi(name)
		if err != nil || i < 0 || i > len(n.Content) || op.Op != "add" && i == len(n.Content) {
			return fmt.Errorf("the list has %d items", len(n.Content))
		}
		n.Style = 0
		switch op.Op {
		case "add":
			n.Content = slices.Insert(n.Content, i, value)
		case "remove":
			n.Content = slices.Delete(n.Content, i, i+1)
		default:
			n.Content[i] = value
		}
	case yaml.MappingNode:
		n.Style = 0
		at := keyAt(n, name)
		switch {
		case op.Op == "remove" && at >= 0:
			n.Content = slices.Delete(n.Content, at, at+2)
		case op.Op == "remove":
			return fmt.Errorf("there is no %s", name)
		case at >= 0:
			n.Content[at+1] = value
		default:
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: name}, value)
		}
	default:
		return fmt.Errorf("%s is neither in a list nor in an object", name)
	}
	return nil
}

// plain makes a tree that was read from JSON look like YAML. Texts keep their tag, and with it quotes where needed.
// A text that YAML 1.1 takes for a truth value keeps its quotes, too.
func plain(n *yaml.Node) {
	if !slices.Contains([]string{"y", "n", "yes", "no", "on", "off"}, strings.ToLower(n.Value)) {
		n.Style = 0
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// child is the value of a field; nil if there is none. What is an alias becomes a copy of what it stands for, so that
// a change does not show elsewhere.
func child(n *yaml.Node, name string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	if at := keyAt(n, name); at >= 0 {
		return resolve(n.Content[at+1])
	}
	return nil
}

// keyAt is the position of a key in an object; -1 if there is none.
func keyAt(n *yaml.Node, name string) int {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return i
		}
	}
	return -1
}

// element is the item of a list at a position; nil if there is none.
func element(n *yaml.Node, i int) *yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode || i < 0 || i >= len(n.Content) {
		return nil
	}
	return resolve(n.Content[i])
}

// resolve turns an alias into a copy of what it stands for, in place.
func resolve(n *yaml.Node) *yaml.Node {
	if n == nil || n.Kind != yaml.AliasNode {
		return n
	}
	head, line, foot := n.HeadComment, n.LineComment, n.FootComment
	*n = *clone(n.Alias, 0)
	n.HeadComment, n.LineComment, n.FootComment = head, line, foot
	return n
}

func clone(n *yaml.Node, depth int) *yaml.Node {
	out := *n
	out.Anchor = ""
	out.Content = make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		if depth < depthMax {
			c = clone(c, depth+1)
		}
		out.Content[i] = c
	}
	return &out
}
