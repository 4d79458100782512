package attach

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	long := strings.Repeat("a", 70)
	for _, x := range []struct{ name, class, account, label string }{
		{"edge", "lateen", "edge-lateen", "edge"},
		{"a.b", "istio", "ga-b-istio-", "a.b"},
		{"1st", "istio", "g1st-istio-", "1st"},
		{long, "lateen", "", ""},
	} {
		account, label := NameOf(x.name, x.class), LabelOf(x.name)
		if x.account == "" {
			if len(account) > labelMax || len(label) > labelMax || account == NameOf(x.name+"b", x.class) || !serviceName.MatchString(account) {
				t.Errorf("%s: %s, %s", x.name, account, label)
			}
			continue
		}
		if !serviceName.MatchString(account) || label != x.label || !strings.HasPrefix(account, x.account[:3]) {
			t.Errorf("%s: %s, %s", x.name, account, label)
		}
	}
}

func TestHolds(t *testing.T) {
	type doc = Document
	for _, x := range []struct {
		has, wanted any
		holds       bool
	}{
		{doc{"a": int64(1), "b": "x"}, doc{"a": int64(1)}, true},
		{doc{"a": int64(2)}, doc{"a": int64(1)}, false},
		{nil, doc{"a": int64(1)}, false},
		{nil, doc{}, true},
		{doc{"l": []any{doc{"n": "a", "x": int64(1)}}}, doc{"l": []any{doc{"n": "a"}}}, true},
		{doc{"l": []any{doc{"n": "a"}, doc{"n": "b"}}}, doc{"l": []any{doc{"n": "a"}}}, false},
	} {
		if got := Holds(x.has, x.wanted); got != x.holds {
			t.Errorf("Holds(%v, %v) = %t", x.has, x.wanted, got)
		}
	}
}
