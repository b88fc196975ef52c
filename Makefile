# `make` lists the targets. Brokers: scripts/brokers, rules of the lint: .golangci.yml.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
GO ?= go
BENCH ?= .
BASE ?= HEAD~1
COUNT ?= 6
PATHS ?=
BENCHFLAGS ?=
MUTATE ?= ./internal/window
SEED ?= 1
SEEDS ?= 20000
FUZZTIME ?= 60s
TORTURE ?= TestTorture|TestCleanStops|TestKilledInbox|TestLongTransaction|TestWritersDoNotNotice|TestPreparedOutlivesTheServer
GOLANGCI_VERSION := v2.15.0
GOLANGCI := .tools/golangci-lint-$(GOLANGCI_VERSION)

# Every package of the workspace (go.work). "./..." would stop at the root module's border, without an error.
MODULE := github.com/millrace-go/millrace
ALL := $(MODULE)/...
# It takes half of the time of all: it begins first, so that nothing waits for it at the end.
LONGEST := $(MODULE)/integration/adapters
# What go test said: `make test` compares it with the tree.
TESTED := $(CURDIR)/bin/tested
# The modules outside of the workspace: their many requirements would change the versions that all others are tested with.
ALONE := GOWORK=off $(GO)

# The race detector; its check of pointers not in SQLite, which is translated C, and would be twice as slow with it.
RACE := -race -gcflags=modernc.org/...=-d=checkptr=0
# Two packages at a time: more would measure how the brokers share one machine.
TEST := $(GO) test $(RACE) -shuffle=on -timeout 30m -p 2
TEST_SHORT := $(GO) test -short $(RACE) -shuffle=on -timeout 10m -p 4 -parallel 8
# What a message costs, without the race detector, which allocates.
ALLOCATIONS := $(GO) test -run "Allocations|Budget" $(MODULE)/router $(MODULE)/adapters/...
# Starts what does not run yet, sets MILLRACE_*_URL, stops what it started, also on failure.
WITH_BROKERS := scripts/brokers run

.DEFAULT_GOAL := help
.PHONY: help test fuzz modules-check compat release tidy test-watermill test-modules test-short torture random lint fmt brokers brokers-stop brokers-status bench bench-go bench-scaling bench-compare cover conformance conformance-versions mutations clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lint ## everything: format, lint, vet and all tests against real brokers, with the race detector
	scripts/modules-check -n
	@mkdir -p bin && rm -f $(TESTED)
	$(WITH_BROKERS) bash -o pipefail -c 'MILLRACE_REQUIRE_BROKERS=1 $(TEST) $(LONGEST) $(ALL) | tee $(TESTED) && $(ALLOCATIONS) && $(MAKE) test-watermill test-modules'
	@scripts/tested $(TESTED)

test-watermill: $(GOLANGCI) ## the module adapters/watermill: lint, both conformance suites, the migration example
	cd adapters/watermill && GOWORK=off $(CURDIR)/$(GOLANGCI) run ./...
	@mkdir -p bin
	$(WITH_BROKERS) bash -o pipefail -c 'cd adapters/watermill && GOWORK=off MILLRACE_REQUIRE_BROKERS=1 $(TEST) ./... | tee -a $(TESTED)'

test-modules: ## the modules examples/gorm, which is run, and benchmarks
	@mkdir -p bin
	cd examples/gorm && $(ALONE) vet ./... && $(ALONE) test ./... | tee -a $(TESTED) && $(ALONE) run .
	cd benchmarks && $(ALONE) vet ./... && $(ALONE) test ./... | tee -a $(TESTED)

modules-check: ## use the modules as users do, from a module proxy: memory needs 2 modules, Kafka no SQL, go install works
	scripts/modules-check

compat: ## build the last release's modules against this tree's root: users may have both
	scripts/compat

release: ## make a release of HEAD, VERSION=v0.x.y: requirements, checks, commit and tags; a dry run without CONFIRM=1
	scripts/release '$(VERSION)'

tidy: ## go mod tidy in every module
	scripts/tidy

test-short: ## tests on memory, SQLite and in-process fakes only; needs nothing installed
	env -u MILLRACE_KAFKA_URL -u MILLRACE_RABBITMQ_URL -u MILLRACE_POSTGRES_URL -u MILLRACE_MYSQL_URL \
		-u MILLRACE_REQUIRE_BROKERS bash -c '$(TEST_SHORT) $(ALL) && cd adapters/watermill && GOWORK=off $(TEST_SHORT) ./...'

torture: ## outbox and inbox at the whole size, about an hour; kills the brokers of this clone (TORTURE=regexp chooses)
	$(WITH_BROKERS) env MILLRACE_REQUIRE_BROKERS=1 MILLRACE_TORTURE=1 $(GO) test $(RACE) -v -count 1 -timeout 180m -run '$(TORTURE)' ./integration/outbox

random: ## the engine by random programs in virtual time, SEEDS=20000 of them from SEED=1 on
	MILLRACE_SEED=$(SEED) MILLRACE_SEEDS=$(SEEDS) $(GO) test -count 1 -timeout 60m -run 'TestRandom$$' ./router

fuzz: ## each fuzz test for FUZZTIME=60s; what it finds stays in testdata, and fails the tests
	scripts/fuzz '$(FUZZTIME)'

lint: $(GOLANGCI) ## check format, vet and lint rules, go.mod, and the shell scripts if shellcheck is there
	folders=$$($(GO) list -m -f '{{.Dir}}/...' | sed 's#^$(CURDIR)#.#') && $(GOLANGCI) run $$folders
	scripts/tidy -diff
	@if command -v shellcheck >/dev/null; then \
		echo shellcheck; shellcheck -x $$(git ls-files scripts .ci); \
	else echo "shellcheck is not installed: scripts are not checked"; fi

fmt: $(GOLANGCI) ## format the Go files (gofumpt, goimports)
	$(GOLANGCI) fmt ./...

brokers: ## install and start Kafka, RabbitMQ, PostgreSQL and MariaDB in .brokers/, and leave them running
	@scripts/brokers start
	@echo "The URLs are in .brokers/env: use them by  . .brokers/env"

brokers-stop: ## stop the brokers; their data is kept
	@scripts/brokers stop

brokers-status: ## show which brokers run, and where
	@scripts/brokers status

bench: ## side by side with Watermill and the raw clients (PATHS=kafka,postgres/publish and BENCHFLAGS="-rounds 5 -json" choose)
	@$(WITH_BROKERS) bash -c 'cd benchmarks && $(ALONE) run . -paths "$(PATHS)" $(BENCHFLAGS)'

bench-scaling: ## how throughput grows with workers, lanes, keys, sizes and so on; draws docs/performance/*.svg (PATHS=workers chooses)
	@$(WITH_BROKERS) bash -c 'cd benchmarks && $(ALONE) run . -scaling ../docs/performance -paths "$(PATHS)" $(BENCHFLAGS)'

bench-compare: ## the Go benchmarks of this tree against those of BASE=commit, by benchstat (BENCH=regexp, COUNT=6)
	scripts/bench-compare "$(BASE)" '$(BENCH)' $(COUNT)

bench-go: ## the Go benchmarks of the repository with brokers (BENCH=regexp chooses)
	$(WITH_BROKERS) $(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -p 1 -timeout 60m $(ALL)

cover: ## all tests with brokers, coverage of all packages in cover.html
	$(WITH_BROKERS) env MILLRACE_REQUIRE_BROKERS=1 \
		$(GO) test -coverpkg=$(ALL) -coverprofile=cover.out -timeout 20m -p 2 $(ALL)
	$(GO) tool cover -html cover.out -o cover.html
	@$(GO) tool cover -func cover.out | tail -n 1

conformance: ## the conformance suite on memory, SQLite and the four brokers, as a user runs it
	@$(WITH_BROKERS) bash -c 'failed=0; db=$$(mktemp -d); trap "rm -rf $$db" EXIT; \
		for url in memory: "sqlite:$$db/bus.db" "$$MILLRACE_KAFKA_URL" "$$MILLRACE_RABBITMQ_URL" \
			"$$MILLRACE_POSTGRES_URL" "$$MILLRACE_MYSQL_URL"; do \
			echo "== $$url"; $(GO) run ./cmd/millrace conformance --url "$$url" || failed=1; \
		done; exit $$failed'

conformance-versions: ## the suite on RabbitMQ 4, PostgreSQL 17 and 18, MariaDB 11, MySQL 9; needs root, for chroot
	$(GO) build -o bin/millrace ./cmd/millrace
	@scripts/versions run bash -c 'bin/millrace conformance --url "$$URL"'

mutations: ## changes of a package's code that no test of it notices (MUTATE=./router chooses the package)
	scripts/mutations $(MUTATE)

clean: ## stop the brokers and delete their data, built commands and reports
	@scripts/brokers clean
	rm -rf bin cover.out cover.html

# Built here once, with the version pinned; the name tells the version, so a new pin builds anew.
$(GOLANGCI):
	GOBIN='$(CURDIR)/.tools/new' GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv .tools/new/golangci-lint $@
