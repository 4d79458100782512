package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The four services, by the names under which the others find them.
const (
	productpage = "productpage"
	details     = "details"
	reviews     = "reviews"
	ratings     = "ratings"
)

// port is where each service listens and is looked for when nothing else is said.
const port = "9080"

// The timeouts are those of Istio's Bookinfo, because its fault-injection task
// lives from their disagreement: the page gives reviews two tries of 3 s, but
// reviews v2 gives ratings 10 s. A ratings delay of 2 s goes unnoticed; a delay
// of 7 s, which v2 would survive, costs the page its reviews after 6 s. In v3
// the fault is mended: it gives up on ratings after 2.5 s, inside the page's 3 s.
const (
	pageTimeout      = 3 * time.Second
	ratingsTimeoutV2 = 10 * time.Second
	ratingsTimeoutV3 = 2500 * time.Millisecond
)

// Config says which service to be and where the others are. Of the zero value
// only Service must be set.
type Config struct {
	// Service is productpage, details, reviews or ratings.
	Service string
	// Version is the version label, v1 when empty. Of reviews, v1 shows no
	// stars, v2 black ones and v3 red ones; the other services only report it.
	Version string
	// Listen is the TCP address to serve on, ":9080" when empty.
	Listen string
	// Pod is the name that this instance reports for itself; the host's name when empty.
	Pod string
	// Cluster is the name that reviews reports as clustername; may stay empty.
	Cluster string
	// Details, Reviews and Ratings are the hosts of the other services, with or
	// without a port; the service's own name and port 9080 when empty.
	Details, Reviews, Ratings string
	// Domain is appended to each of these hosts: "shop" makes reviews "reviews.shop".
	Domain string
	// PageTimeout is what the product page gives a backend for one try, 3 s when zero.
	PageTimeout time.Duration
	// RatingsTimeout is what reviews gives ratings, 10 s in v2 and 2.5 s in v3 when zero.
	RatingsTimeout time.Duration
}

// parse reads the command line. The environment gives the defaults for the
// names that Istio's deployments of Bookinfo set there.
func parse(args []string, getenv func(string) string, stderr io.Writer) (Config, error) {
	var cfg Config
	flags := flag.NewFlagSet("bookinfo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&cfg.Version, "version", "v1", "version label; reviews: v1 no stars, v2 black, v3 red")
	flags.StringVar(&cfg.Listen, "listen", ":"+port, "TCP address to serve on")
	flags.StringVar(&cfg.Pod, "pod", getenv("HOSTNAME"), "name to report for this instance (HOSTNAME)")
	flags.StringVar(&cfg.Cluster, "cluster", getenv("CLUSTER_NAME"), "cluster that reviews reports (CLUSTER_NAME)")
	flags.StringVar(&cfg.Details, "details", getenv("DETAILS_HOSTNAME"), "host of details (DETAILS_HOSTNAME)")
	flags.StringVar(&cfg.Reviews, "reviews", getenv("REVIEWS_HOSTNAME"), "host of reviews (REVIEWS_HOSTNAME)")
	flags.StringVar(&cfg.Ratings, "ratings", getenv("RATINGS_HOSTNAME"), "host of ratings (RATINGS_HOSTNAME)")
	flags.StringVar(&cfg.Domain, "domain", getenv("SERVICES_DOMAIN"), "domain of these hosts (SERVICES_DOMAIN)")
	if len(args) == 0 {
		return Config{}, errors.New("name a service; " + usage)
	}
	first := args[0]
	if !strings.HasPrefix(first, "-") {
		cfg.Service, args = first, args[1:]
	}
	if err := flags.Parse(args); err != nil {
		return Config{}, err
	}
	if flags.NArg() > 0 || cfg.Service == "" {
		return Config{}, errors.New("name one service, before the flags; " + usage)
	}
	return cfg, nil
}

// label matches a Kubernetes label value, which a version has to be, and a pod's name.
var label = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?$`)

// complete returns cfg with its defaults filled in, or all that is wrong with it.
func (cfg Config) complete() (Config, error) {
	var faults []error
	if !slices.Contains([]string{productpage, details, reviews, ratings}, cfg.Service) {
		faults = append(faults, fmt.Errorf("unknown service %q; %s", cfg.Service, usage))
	}
	cfg.Version = cmp.Or(cfg.Version, "v1")
	if !label.MatchString(cfg.Version) {
		faults = append(faults, fmt.Errorf("version %q is not a label value such as v1", cfg.Version))
	}
	if cfg.Service == reviews && !slices.Contains([]string{"v1", "v2", "v3"}, cfg.Version) {
		faults = append(faults, fmt.Errorf("reviews has no version %q: choose v1, v2 or v3", cfg.Version))
	}
	if cfg.Pod == "" {
		host, err := os.Hostname()
		if err != nil {
			faults = append(faults, fmt.Errorf("read the host's name: %w; set --pod", err))
		}
		cfg.Pod = host
	}
	if !label.MatchString(cfg.Pod) {
		faults = append(faults, fmt.Errorf("pod name %q is not a host name; set --pod", cfg.Pod))
	}
	cfg.Listen = cmp.Or(cfg.Listen, ":"+port)
	cfg.Details = address(cmp.Or(cfg.Details, details), cfg.Domain)
	cfg.Reviews = address(cmp.Or(cfg.Reviews, reviews), cfg.Domain)
	cfg.Ratings = address(cmp.Or(cfg.Ratings, ratings), cfg.Domain)
	cfg.PageTimeout = cmp.Or(cfg.PageTimeout, pageTimeout)
	if cfg.RatingsTimeout == 0 {
		cfg.RatingsTimeout = ratingsTimeoutV2
		if cfg.Version == "v3" {
			cfg.RatingsTimeout = ratingsTimeoutV3
		}
	}
	return cfg, errors.Join(faults...)
}

// address is host:port of a service whose host was given with or without a port.
func address(host, domain string) string {
	name, p, err := net.SplitHostPort(host)
	if err != nil {
		name, p = host, port
	}
	if domain != "" {
		name += "." + domain
	}
	return net.JoinHostPort(name, p)
}
