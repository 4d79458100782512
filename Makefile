# make build | demo | test | quick | lint | fuzz | bench | soak | profile | fix; `make test` is everything, on a fresh machine.
SHELL := /bin/bash -o pipefail
BIN   := lateen lateend lateen-proxy
TOOL   = go tool -modfile=tools/go.mod
FUZZTIME ?= 3000x
ENVOY  = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lateen/envoy-1.40.0/envoy/_bin/envoy
SCENARIO ?= h1
OUT      ?= bin/profile
SOAK     ?= 20m

.PHONY: build demo test quick lint fuzz bench microbench soak profile fix setup clean

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

test: setup lint ## everything; with the Envoy that setup has installed, unless LATEEN_ENVOY names another
	export LATEEN_ENVOY=$${LATEEN_ENVOY:-$$(ls $(ENVOY) 2>/dev/null)} && $(TOOL) gotestsum --format pkgname -- -race -timeout 20m ./...
	$(MAKE) --no-print-directory fuzz

quick: ## what one runs at every save
	go build ./... && go vet ./... && go test -short -timeout 2m ./...

lint:
	$(TOOL) golangci-lint run ./...

fuzz: ## each fuzz target for some executions
	@tools/fuzz $(FUZZTIME)

bench: ## our proxy beside Envoy, HAProxy and nginx
	@tools/setup-bench
	@mkdir -p bin
	go run ./test/bench -markdown bin/bench.md -plot bin/bench.svg -json bin/bench.json && cat bin/bench.md

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
