# Everything a developer or a CI job calls. The steps longer than a line are in .ci/.
SHELL     := /bin/bash
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PLATFORMS ?= linux/amd64 linux/arm64 linux/386 darwin/arm64 freebsd/amd64
# A number of inputs rather than a time: up to Go 1.26 a target whose time ends while the
# machine is busy can fail with "context deadline exceeded" (golang.org/issue/75804).
FUZZTIME  ?= 20000x
COUNT     ?= 6
SOAK      ?= 10m
BENCH     := .cache/bench.txt
LINT      := .cache/bin/golangci-lint
BENCHSTAT := .cache/bin/benchstat
# What the programs of test/node need, and the versions of Node that node-matrix runs them with.
PROGRAMS  := test/node/node_modules/.package-lock.json
NODES     ?= 18.20.8 20.20.2 22.23.3 24.21.0 26.10.0
# Debian's packages of what make bench compares rrd with, and of the compiler for its clients.
PEERS     := gcc libc6-dev haproxy nginx libnginx-mod-stream nodejs
# rrd/test itself is end to end; all other packages are unit tests, beside their code.
UNIT = $$(go list ./... | grep -vx rrd/test)
export GOLANGCI_LINT_CACHE ?= $(CURDIR)/.cache/golangci-lint

.PHONY: help build test setup format vet windows lint fmt unit race bench-once bench bench-scale bench-master bench-node bench-micro fuzz-short e2e node-matrix systemd soak clean
.NOTPARALLEL: # each step uses all the cores by itself

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the programs, static, into bin/
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

# The plain unit run is the short one here, for the allocation tests that a race build cannot make; the race run is the full one.
test: UNITFLAGS = -short
test: setup format vet windows lint build unit race bench-once fuzz-short e2e ## all of what CI runs: from setup to e2e, as listed here

setup: ## install what the tests need (Debian, as root), or say what is missing
	@.ci/setup $(PEERS) strace curl python3 npm systemd
	@$(MAKE) --no-print-directory $(PROGRAMS)

format: $(LINT) ## fail if gofmt or goimports would change a file (fmt changes it)
	$(LINT) fmt --diff

fmt: $(LINT) ## format every file
	$(LINT) fmt

vet: ## go vet for every system and width that rrd is built for
	@for p in $(PLATFORMS); do echo "go vet ($$p)"; \
		CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go vet ./... || exit 1; done

windows: ## check that a build for Windows fails, in one line that says why
	@.ci/windows

lint: $(LINT) ## the rules of .golangci.yaml
	$(LINT) run

unit: ## unit tests; UNITFLAGS=-short leaves the slow ones out
	go test -count=1 -timeout 5m $(UNITFLAGS) $(UNIT)

race: ## unit tests under the race detector (needs cgo and a C compiler)
	CGO_ENABLED=1 go test -race -count=1 -timeout 8m $(UNIT)

bench-once: ## every benchmark once, to see that it still runs
	go test -run '^$$' -bench . -benchtime 1x -timeout 5m $(UNIT) | grep -vE 'no test files|^(goos|goarch|pkg|cpu|PASS)'; exit $${PIPESTATUS[0]}

bench: ## rrd, HAProxy, nginx and Node's primary side by side, and the picture of it (docs/performance.md)
	@.ci/setup $(PEERS)
	go run ./test/bench -svg docs/bench.svg

bench-scale: ## many workers, many waiting, rates from 100/s to the peak, and the picture of it (docs/performance.md)
	@.ci/setup gcc libc6-dev
	go run ./test/bench -scale -svg docs/bench-scale.svg

bench-master: ## the master's cost of a connection, against a minimal one in C (docs/performance.md)
	go run ./test/bench -master

bench-node: ## a Node program under Node's own primary and under rrd (docs/performance.md)
	go run ./test/bench -node

bench-micro: $(BENCHSTAT) ## benchmarks of the parts, COUNT times; OLD=file compares with an earlier .cache/bench.txt
	go test -run '^$$' -bench . -benchmem -count $(COUNT) -timeout 60m $(UNIT) | tee $(BENCH); exit $${PIPESTATUS[0]}
	$(BENCHSTAT) $(OLD) $(BENCH)

fuzz-short: ## every fuzz target for FUZZTIME (20000x inputs, or 10m)
	@.ci/fuzz $(FUZZTIME)

e2e: $(PROGRAMS) ## end to end: the built program, real processes, real clients
	go test -count=1 -timeout 30m ./test
	cd test/extern && go vet ./... && go test -count=1 ./...

node-matrix: $(PROGRAMS) ## the tests of Node programs with each version of Node in NODES
	@.ci/node-matrix $(NODES)

systemd: ## the shipped units under a real systemd, in namespaces (Debian, as root)
	@.ci/systemd

soak: $(PROGRAMS) ## the TestSoak tests of test/ for SOAK each
	@go test -list '^TestSoak' ./test | grep -q '^TestSoak' || { echo 'soak: test/ has no TestSoak' >&2; exit 1; }
	SOAK=$(SOAK) go test -count=1 -timeout 0 -v -run '^TestSoak' ./test

clean: ## remove what make has built
	rm -rf bin .cache

# Nothing of a package is run when it is installed.
$(PROGRAMS): test/node/package.json test/node/package-lock.json
	cd test/node && npm ci --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

# The tools have a module of their own, so that their 200 modules are not rrd's.
$(LINT) $(BENCHSTAT) &: .tools/go.mod .tools/go.sum
	cd .tools && CGO_ENABLED=0 GOFLAGS= GOBIN=$(CURDIR)/.cache/bin go install tool
	@touch $(LINT) $(BENCHSTAT)
