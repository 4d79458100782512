package proxy

import (
	"errors"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/client"
	"github.com/lateen-mesh/lateen/xds/native"
)

// TestFeedRefuses: a proxy tells which of its orders it cannot obey, takes what came with them, and tells it no longer
// when they have been mended.
func TestFeedRefuses(t *testing.T) {
	p := startRig(t).p
	f := feed{p}
	for _, name := range []string{"garbled", "misnamed", "empty", "good"} {
		p.table.Route(name)
	}
	wire := func(name string, res plan.Resource) client.Resource {
		return client.Resource{Name: name, Version: "1", Body: native.Encode(res)}
	}
	route := func(name string, rules ...plan.Rule) plan.Resource {
		return &plan.Route{Name: name, Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"}, Rules: rules}}}
	}
	typeURL := native.TypeURL(plan.KindRoute)
	err := f.Update(typeURL, []client.Resource{
		{Name: "garbled", Body: []byte{0xff}}, wire("misnamed", route("other")), wire("empty", route("empty", plan.Rule{})), wire("good", route("good")),
	}, nil)
	refused, some := errors.AsType[client.Refused](err)
	if !some || len(refused) != 3 || refused["garbled"] == nil || refused["misnamed"] == nil || refused["empty"] == nil {
		t.Errorf("refused: %v", err)
	}
	if _, state := p.table.Route("good"); state.String() != "ready" {
		t.Errorf("the good one is %s", state)
	}
	if got := p.Status().Refused; got != refused.Error() || !strings.Contains(got, `route "misnamed" calls itself "other"`) {
		t.Errorf("status: %q, want %q", got, refused)
	}
	if err := f.Update(typeURL, []client.Resource{wire("garbled", route("garbled")), wire("empty", route("empty"))}, []string{"misnamed"}); err != nil {
		t.Error(err)
	}
	if got := p.Status().Refused; got != "" {
		t.Errorf("mended, and still refused: %q", got)
	}
	if err := f.Update("unknown", nil, nil); err == nil {
		t.Error("a type that is unknown was taken")
	}
}
