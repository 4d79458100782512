package kube

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
)

// TestRelay: a browser of this machine gets the page, and the end of the command ends all.
func TestRelay(t *testing.T) {
	s := newStage(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var errs strings.Builder
	p := get[*core.Pod](s, "shop", "web-1")
	go func() { ended <- s.world().relay(ctx, l, p, portProxyAdmin, &errs) }()
	client := http.Client{Transport: &http.Transport{}}
	for range 2 {
		answer, err := client.Get("http://" + l.Addr().String() + "/config")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if !strings.Contains(string(text), "cluster web") {
			t.Errorf("%s", text)
		}
	}
	stop() // with a connection that is kept
	if err := <-ended; err != nil || errs.Len() > 0 {
		t.Errorf("%v; %s", err, errs.String())
	}
}
