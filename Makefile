# make build | demo | test | quick | lint | fuzz | bench | soak | profile | fix | cluster | cluster-down | conformance; `make test` is everything, on a fresh machine.
SHELL := /bin/bash -o pipefail
BIN   := lateen lateend lateen-proxy lateen-cni lateen-kube lateen-operator
TOOL   = go tool -modfile=tools/go.mod
# One package more than there are processors: those on a cluster wait for pods and timers meanwhile.
GOTESTSUM = $(TOOL) gotestsum --format pkgname -- -race -timeout 20m -p $$(($$(nproc) + 1))
# These wait most, and are begun first.
PATIENT   = ./test/oracle ./test/netns ./deploy/apply ./deploy/operate
FUZZTIME ?= 3000x
ENVOY  = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lateen/envoy-1.40.0/envoy/_bin/envoy
SCENARIO ?= h1
OUT      ?= bin/profile
HUB      ?= lateen.test
KUBE     := 1.36.3
KUBEFLAGS = -s -w -X k8s.io/component-base/version.gitVersion=v$(KUBE) -X k8s.io/component-base/version.gitMajor=1 \
  -X k8s.io/component-base/version.gitMinor=36
SOAK     ?= 20m

.PHONY: build demo test quick lint fuzz bench microbench soak profile fix setup clean \
  cluster cluster-down images setup-cluster test-cluster test-kube test-beside conformance

build: $(BIN:%=bin/%) bin/bookinfo
bin/bookinfo: FORCE
	@go build -trimpath -o $@ ./examples/bookinfo
bin/%: FORCE
	@go build -trimpath -ldflags=-s -o $@ ./cmd/$*
FORCE:

demo: ## Bookinfo in the mesh, on this machine
	@echo "building the binaries (the first time downloads modules) ..." && $(MAKE) --no-print-directory build
	@bin/lateen demo

setup: ## what the tests need beyond Go
	@tools/setup

test: setup lint setup-cluster bin/cluster ## everything, on a real Kubernetes too; with the Envoy of setup, unless LATEEN_ENVOY names another
	export LATEEN_ENVOY=$${LATEEN_ENVOY:-$$(ls $(ENVOY) 2>/dev/null)} && $(GOTESTSUM) $(PATIENT) $$(go list ./... | grep -v /test/kube)
	$(MAKE) --no-print-directory -j2 --output-sync=line test-kube test-beside

# Tests on clusters wait most of the time: what computes runs beside them, and only while they leave a processor alone.
test-beside:
	chrt --idle 0 $(MAKE) --no-print-directory fuzz

test-kube: setup-cluster bin/cluster ## what is tested on real clusters
	$(GOTESTSUM) $$(go list ./test/... | grep /test/kube)
	$(MAKE) --no-print-directory test-cluster

quick: ## what one runs at every save
	go build ./... && go vet ./... && go test -short -timeout 2m ./...

lint:
	CGO_ENABLED=0 GOFLAGS="$$(go env GOFLAGS) -trimpath" $(TOOL) golangci-lint run ./...

fuzz: ## each fuzz target for some executions
	@tools/fuzz $(FUZZTIME)

bench: ## our proxy beside Envoy, HAProxy and nginx
	@tools/setup-bench
	@mkdir -p bin
	go run ./test/bench -markdown bin/bench.md -plot bin/bench.svg -json bin/bench.json && cat bin/bench.md

# One module, one set of flags: what Kubernetes is made of is compiled once, in some ten minutes, and then cached.
bin/cluster: FORCE
	@mkdir -p bin/kube && cd test/cluster && CGO_ENABLED=0 go build -trimpath -ldflags "$(KUBEFLAGS)" -o ../../bin/kube/ ./...
	@ln -sf kube/cluster bin/cluster && ln -sf kube/kubeall bin/kubectl

cluster: setup-cluster bin/cluster ## a real Kubernetes on this machine, with images of this checkout
	@bin/cluster up
	@$(MAKE) --no-print-directory images && bin/cluster load bin/images/*.tar

cluster-down:
	@bin/cluster down

images: bin/cluster ## archives of container images, in bin/images; HUB=... names them
	@mkdir -p bin/static && CGO_ENABLED=0 go build -trimpath -ldflags=-s -o bin/static/ ./cmd/... ./examples/bookinfo
	@for program in bin/static/*; do name=$${program##*/}; \
	  bin/cluster image -o bin/images/$$name.tar -t $(HUB)/$$name:dev $$program || exit 1; done

setup-cluster:
	@tools/setup-cluster

test-cluster: setup-cluster bin/cluster ## that cluster's own linters and tests
	cd test/cluster && CGO_ENABLED=0 GOFLAGS="$$(go env GOFLAGS) -trimpath" $(subst =tools,=../../tools,$(TOOL)) golangci-lint run ./...
	cd test/cluster && CGO_ENABLED=0 go test -trimpath -timeout 15m -v ./...

conformance: setup-cluster bin/cluster ## the Gateway API's own suite against a cluster; its report and log are left in bin/_artifacts
	go test ./test/kubegateway -run '^TestConformance$$' -v -count 1 -timeout 40m -conformance -artifacts -outputdir $(CURDIR)/bin

soak: ## mixed traffic while the mesh changes, every byte checked: make soak [SOAK=20m]
	go test ./test/soak -v -count 1 -timeout 12h -soak $(SOAK)

microbench: ## functions by themselves
	go test -run '^$$' -bench . -benchmem -benchtime 1s ./...

profile: ## where our proxy's time goes: make profile SCENARIO=h1 [OUT=dir]
	go run ./test/bench -for 10s -scenario $(SCENARIO) -profile $(OUT)

fix:
	gofmt -s -w . && $(TOOL) golangci-lint run --fix ./...

clean:
	rm -rf bin
