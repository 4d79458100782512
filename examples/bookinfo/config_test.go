package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCommandLine(t *testing.T) {
	env := map[string]string{
		"HOSTNAME": "reviews-v3-abc", "CLUSTER_NAME": "east", "RATINGS_HOSTNAME": "stars", "SERVICES_DOMAIN": "shop",
	}
	for _, tc := range []struct {
		name string
		args string
		env  map[string]string
		want Config
	}{
		{"defaults", "reviews --pod p", nil, Config{
			Service: "reviews", Version: "v1", Listen: ":9080", Pod: "p",
			Details: "details:9080", Reviews: "reviews:9080", Ratings: "ratings:9080",
			PageTimeout: 3 * time.Second, RatingsTimeout: 10 * time.Second,
		}},
		{"environment", "reviews --version v3", env, Config{
			Service: "reviews", Version: "v3", Listen: ":9080", Pod: "reviews-v3-abc", Cluster: "east",
			Details: "details.shop:9080", Reviews: "reviews.shop:9080", Ratings: "stars.shop:9080", Domain: "shop",
			PageTimeout: 3 * time.Second, RatingsTimeout: 2500 * time.Millisecond,
		}},
		{"flags win", "ratings --listen 127.0.0.1:0 --version=v2 --pod r --ratings 127.0.0.1:81 --domain=", env, Config{
			Service: "ratings", Version: "v2", Listen: "127.0.0.1:0", Pod: "r", Cluster: "east",
			Details: "details:9080", Reviews: "reviews:9080", Ratings: "127.0.0.1:81",
			PageTimeout: 3 * time.Second, RatingsTimeout: 10 * time.Second,
		}},
		{"IPv6", "productpage --pod p --reviews ::1 --details [::1]:7", nil, Config{
			Service: "productpage", Version: "v1", Listen: ":9080", Pod: "p",
			Details: "[::1]:7", Reviews: "[::1]:9080", Ratings: "ratings:9080",
			PageTimeout: 3 * time.Second, RatingsTimeout: 10 * time.Second,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, err := parse(strings.Fields(tc.args), func(k string) string { return tc.env[k] }, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			got, err := cfg.complete()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCommandLineFaults(t *testing.T) {
	for args, want := range map[string]string{
		"":                              "name a service",
		"--version v1":                  "name one service",
		"reviews extra":                 "name one service",
		"reviews --colour red":          "flag provided but not defined",
		"shelves --pod p":               `unknown service "shelves"`,
		"reviews --pod p --version v9":  `reviews has no version "v9"`,
		"details --pod p --version a/b": "not a label value",
		"details --pod -x-":             "not a host name",
	} {
		cfg, err := parse(strings.Fields(args), func(string) string { return "" }, io.Discard)
		if err == nil {
			_, err = cfg.complete()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want one with %q", args, err, want)
		}
	}
}
