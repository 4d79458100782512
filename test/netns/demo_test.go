package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// report is what a headless demo prints.
type report struct {
	Requests  int     `json:"requests"`
	Failed    int     `json:"failed"`
	MTLSShare float64 `json:"mtls_share"`
	Edges     []struct {
		From, To, Version string
		Requests          int
		Share, Success    float64
		P50               float64 `json:"p50_ms"`
		MTLS              bool
	}
	Proxies []struct {
		Name string
		RSS  float64 `json:"rss_mib"`
	}
	ReadyMS  float64 `json:"ready_ms"`
	Statuses map[string]int
}

// share is the part of an edge's requests that went to a version.
func (r *report) share(from, to, version string) float64 {
	for _, e := range r.Edges {
		if e.From == from && e.To == to && e.Version == version {
			return e.Share
		}
	}
	return 0
}

// demo runs the demo without a picture, with examples applied, and returns its report.
func demo(t *testing.T, seconds int, wantOK bool, examples []string, args ...string) *report {
	t.Helper()
	root(t)
	config := t.TempDir()
	for _, e := range examples {
		text, err := os.ReadFile(filepath.Join("..", "..", "examples", "bookinfo", e))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(config, filepath.Base(e)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(seconds)*time.Second+2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "lateen"), append([]string{
		"demo", "--mesh", fmt.Sprintf("test-%d", os.Getpid()), "--headless", "--for", fmt.Sprintf("%ds", seconds), "-o", "json",
		"--config", config, "--port", "0",
	}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if (err == nil) != wantOK {
		t.Fatalf("demo: %v\n%s\n%s", err, out.Bytes(), errs.Bytes())
	}
	r := &report{}
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		t.Fatalf("demo printed no JSON: %v\n%s\n%s", err, out.Bytes(), errs.Bytes())
	}
	t.Logf("%s", out.Bytes())
	return r
}

// about checks a share against what the configuration says, within what chance allows for that many requests.
func about(t *testing.T, what string, got, want float64, n int) {
	t.Helper()
	slack := 5*math.Sqrt(want*(1-want)/float64(max(n, 1))) + 0.01
	if math.Abs(got-want) > slack {
		t.Errorf("%s: share %.3f of %d, want %.2f", what, got, n, want)
	}
}

func TestDemo(t *testing.T) {
	r := demo(t, 15, true, nil)
	if r.Failed != 0 || r.MTLSShare != 1 || r.Requests < 100 {
		t.Errorf("requests %d, failed %d, mtls share %v", r.Requests, r.Failed, r.MTLSShare)
	}
	for _, v := range []string{"v1", "v2", "v3"} {
		about(t, "reviews "+v, r.share("productpage", "reviews", v), 1.0/3, r.Requests)
	}
	for _, e := range r.Edges {
		if !e.MTLS && e.From != "" && e.From != "client" {
			t.Errorf("%s to %s is not mutual TLS", e.From, e.To)
		}
	}
}

func TestExamples(t *testing.T) {
	rules := "networking/destination-rule-all.yaml"
	tests := []struct {
		name     string
		examples []string
		args     []string
		ok       bool
		check    func(t *testing.T, r *report)
	}{
		{"90/10", []string{rules, "networking/virtual-service-reviews-90-10.yaml"}, []string{"--rate", "60"}, true, func(t *testing.T, r *report) {
			about(t, "reviews v1", r.share("productpage", "reviews", "v1"), 0.9, r.Requests)
		}},
		{"jason by header", []string{rules, "networking/virtual-service-reviews-test-v2.yaml"}, []string{"--header", "cookie: user=jason"}, true, func(t *testing.T, r *report) {
			about(t, "reviews v2", r.share("productpage", "reviews", "v2"), 1, r.Requests)
		}},
		{"all v1", []string{rules, "networking/virtual-service-all-v1.yaml"}, nil, true, func(t *testing.T, r *report) {
			about(t, "reviews v1", r.share("productpage", "reviews", "v1"), 1, r.Requests)
		}},
		{"strict", []string{"policy/peer-authentication-strict.yaml"}, nil, true, func(t *testing.T, r *report) {
			if r.MTLSShare != 1 {
				t.Errorf("mtls share %v", r.MTLSShare)
			}
		}},
		{"deny all", []string{"policy/authz-deny-all.yaml"}, nil, false, func(t *testing.T, r *report) {
			if r.Statuses["403"] == 0 || r.Statuses["200"] != 0 {
				t.Errorf("statuses %v, want 403 only", r.Statuses)
			}
		}},
		{"deny all, then allow", []string{
			"policy/authz-deny-all.yaml", "policy/authz-allow-productpage.yaml", "policy/authz-allow-details.yaml",
			"policy/authz-allow-reviews.yaml", "policy/authz-allow-ratings.yaml",
		}, nil, true, func(t *testing.T, r *report) {
			if r.Failed != 0 || r.share("productpage", "details", "v1") != 1 {
				t.Errorf("failed %d, edges %+v", r.Failed, r.Edges)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.check(t, demo(t, 6, tt.ok, tt.examples, tt.args...)) })
	}
}
