# Everything here needs Go and make. The container tests need Docker too: without it they
# are skipped, and "make test" says so; REQUIRE_DOCKER=1 makes them fail instead.

BINARY        := bin/identify-worker
LINT          := .bin/golangci-lint
LINT_VERSION  := v2.15.0
VULN_VERSION  := v1.9.0
SBOM          := .bin/cyclonedx-gomod
SBOM_VERSION  := v1.10.0
# Building it takes minutes. Any promtool from 2.42 on will do: make alerts PROMTOOL=...
PROMTOOL      := .bin/promtool
# The version of the Go module, which is Prometheus 3.16.
PROM_VERSION  := v0.316.0
CRANE         := .bin/crane
CRANE_VERSION := v0.22.1
# The last of the oldest minor version that is supported: see queue.MinServerVersion.
OLDEST_NATS   ?= v2.11.17
FUZZTIME      ?= 10s
CHAOS_TIME    ?= 60s

# The inputs of a build besides the files, so that the same commit gives the same bytes. Set them to
# build a copy without the repository.
VERSION           ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
REVISION          ?= $(shell git rev-parse HEAD 2>/dev/null)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

# One static file. Nothing speaks HTTP/2, so half a megabyte of it is left out. Released binaries and
# those in the image are stripped as well.
TAGS    := nethttpomithttp2
BUILD   := CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)'
RELEASE := CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

CROSS       ?= darwin/arm64 windows/amd64
IMAGE       ?= identify-worker
IMAGE_ARCHS ?= amd64 arm64

# The race detector needs a C compiler, and Go turns cgo off where it finds none.
RACE = $(if $(filter 1,$(shell go env CGO_ENABLED)),-race)

# The tests' servers write small files all the time, and no file outlasts its test. So they are in memory,
# where /dev/shm has 4 GiB free and may hold programs: that saves a fifth of the tests' processor time.
MEMORY = $(shell grep -s ' /dev/shm ' /proc/mounts | grep -qv noexec && df -kP /dev/shm | awk 'NR == 2 && $$4 >= 4194304 { print $$6 }')

# How much of the limit is used far away depends on spare capacity, so that test runs alone. Then tests
# of three kinds run side by side: the container tests and the campaign's tests, which kill and freeze
# real processes, mostly wait, and all others compute. Their limits of time are for a busy machine, or in
# fake time. NICE='nice -n 10' keeps those that compute, and their compilers, from delaying the others.
NICE       ?=
CONTAINERS := ./integration
CAMPAIGN   := ./integration/chaos
# Packages with tests of hardly any goroutines: to link these with the race detector takes longer than to
# run them.
PLAIN       = $(addprefix ./,$(addsuffix /...,deployments $(addprefix integration/,bench mutants oracle overlay) \
	$(addprefix cmd/identify-worker/internal/,doctor export health render status)))
PACKAGES    = $(filter-out $(shell go list $(PLAIN)),$(shell go list ./... | grep -v -e '/integration$$' -e '/integration/chaos$$'))

# The output of each command in one piece, where make is not as old as on macOS.
PIECES := $(if $(filter output-sync,$(.FEATURES)),--output-sync=line)

# Without the race detector, tests are built with the flags of "make build": so what they, the product
# and the programs that they build have in common is compiled once. The race detector would slow the
# waiting tests down, and would not see into their processes anyway. "make lint" vets all packages.
TEST := env CGO_ENABLED=0 go test -vet=off -tags $(TAGS) -trimpath

# Verbose, because "go test" hides why tests of a package that passes were skipped. Four at a time on any
# number of processors: one works, and the longest should begin at once.
CONTAINED = $(TEST) -v -timeout 15m -artifacts -outputdir $(CURDIR)/bin

# By default the race detector lets each process wait for a second before it exits.
RACED = env GORACE=atexit_sleep_ms=10 go test $(RACE) -vet=off

# Long simulations: tables of ledgers and whole workers at many distances, minutes or hours at a limit,
# in an outage or on hold, backlogs beyond the memory, and crashes at every step. With the race detector
# they would take many minutes, and it checks the same code in the other tests.
LONG := FarAway|FarAwayFleet|FarLetters|FleetFarFromNATS|LedgersFarAway|LedgersAtADistance|StopWhileReadingAgain
LONG := $(LONG)|RateUsed|RateOfFleet|RateLoweredInRollingUpdate|RateAcrossRestarts|ReplicasWanted|ManyReplaysOfAUser
LONG := $(LONG)|Outage|OutageWithFewUsers|Hold|Stall|SickUser|Throttled|LedgerStorm|LedgerWhenTheServersClockIsSet|ReplayCrashes|Verdicts
LONG := $(LONG)|LedgersCrowd|LedgerSlowReading|LedgerWrites|ShardsHoldInEveryWindow|FarPublish|FarReads|DiscardStops
LONG := $(LONG)|LiveFirst|LiveTakesTheSlotsOfBackfill|ClassesSimulation|HugeFailingBacklog|MergedBeyondMemory|BacklogBeyondMemory|FirewallRefusesOneEvent|MetricsOfAFullDeadLetterStream
LONG := $(LONG)|LateBackfillAfterATakeover|LiveFirstAfterATakeover|BarredUsersFillTheMemory|PullAfterManyGaps|SplitOnceThereIsRoom|SplitLeavesRoom
LONG := $(LONG)|LateBackfill|ClassesAreVisible|ReplayDelaysNoLiveEvent|GuiltyAmongAThousand|DeadLetterStreamFullLeavesRoom|ClaimThatNeverLasts|MemoryIsFlat
# The scripts run the command as its users do, most of them in a process for each line. With the race
# detector a process takes four times the time to start, and other tests of the package run the same
# verbs with it: setup, publish, work, up, status, doctor and dlq.
LONG := $(LONG)|Scripts
# Four servers and two workers in one process: with the race detector on a busy machine, no answer of
# theirs is in time. The same goes for a worker that has to deliver many files, one after another.
LONG := $(LONG)|Domain|FilesBecomeProfiles
# nats-server 2.15 has a race of its own when it reloads its users.
LONG := $(LONG)|PasswordIsRolled
# Random runs, few of which run with the race detector.
RANDOM := Simulation|NewerWins
# The packages that have any of them.
UNRACED = $(filter-out $(CONTAINERS),$(shell grep -rlE '^func Test($(LONG)|$(RANDOM))\b' --include='*_test.go' . | xargs -n 1 dirname | sort -u))

# The manifests' tests are a module of their own. They read files outside of it, which Go's cache of
# test results ignores.
MANIFESTS := deployments/kubernetes

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: build ## build it and watch it work: a stand-in API, sample events, a summary
	@$(BINARY) up --demo

.PHONY: build
build: ## build the static binary, bin/identify-worker
	$(BUILD) -o $(BINARY) ./cmd/identify-worker

.PHONY: cross
cross: ## check that it builds for macOS and Windows
	for platform in $(CROSS); do \
		GOOS=$${platform%/*} GOARCH=$${platform#*/} $(BUILD) -o /dev/null ./cmd/identify-worker || exit 1; \
	done

.PHONY: image
image: ## build the image for amd64 and arm64, bin/image-ARCH.tar and bin/layout; needs no Docker
	@mkdir -p bin/image && cp LICENSE bin/image/
	for arch in $(IMAGE_ARCHS); do \
		GOOS=linux GOARCH=$$arch $(RELEASE) -o bin/image/linux/$$arch/identify-worker ./cmd/identify-worker || exit 1; \
	done
	go run ./deployments/image -output bin -name $(IMAGE):$(VERSION) $(IMAGE_ARCHS:%=-platform linux/%) \
		-version $(VERSION) -revision "$(REVISION)" -time $(SOURCE_DATE_EPOCH) bin/image

.PHONY: image-check
image-check: image ## build the image a second time, elsewhere and without the repository, and compare
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$$copy" && \
	$(MAKE) -C "$$copy" image VERSION=$(VERSION) REVISION=$(REVISION) SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) && \
	for arch in $(IMAGE_ARCHS); do cmp bin/image-$$arch.tar "$$copy/bin/image-$$arch.tar" || exit 1; done && diff -r bin/layout "$$copy/bin/layout" && echo "two builds, one digest"

.PHONY: load
load: image ## build the image and load it into Docker as identify-worker:latest
	docker load -i bin/image-$$(go env GOARCH).tar
	docker tag $(IMAGE):$(VERSION) $(IMAGE):latest

.PHONY: push
push: image $(CRANE) ## build the image and push it as IMAGE:VERSION, all platforms under one digest
	$(CRANE) push bin/layout $(IMAGE):$(VERSION) --image-refs bin/image.digest

$(CRANE): Makefile
	GOBIN=$(CURDIR)/.bin CGO_ENABLED=0 go install github.com/google/go-containerregistry/cmd/crane@$(CRANE_VERSION)
	@touch $@

.PHONY: sbom
sbom: $(SBOM) build ## list the components of the binary in bin/sbom.cdx.json (CycloneDX)
	$(SBOM) bin -json -licenses -std -noserial -notimestamp -version $(VERSION) -output bin/sbom.cdx.json $(BINARY)

$(SBOM): Makefile
	GOBIN=$(CURDIR)/.bin CGO_ENABLED=0 go install github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(SBOM_VERSION)
	@touch $@

.PHONY: test
test: export TMPDIR ?= $(MEMORY)
test: ## run all tests; those in containers need Docker
	@$(MAKE) --no-print-directory -j 3 $(PIECES) test-computing test-campaign test-containers

.PHONY: test-computing
test-computing: test-far
	$(NICE) $(RACED) -timeout 20m -skip '^Test($(LONG))$$' $(PACKAGES)
	$(NICE) $(TEST) -timeout 20m $(PLAIN)
	$(NICE) $(TEST) -timeout 20m -run '^Test($(LONG)|$(RANDOM))$$' $(UNRACED)
	cd $(MANIFESTS) && $(NICE) $(TEST) -count=1 ./...

.PHONY: test-far
test-far:
	@mkdir -p bin
	$(CONTAINED) -run '^TestFarAway$$' $(CONTAINERS)

# Two rounds at a time, and a build for the next.
.PHONY: test-campaign
test-campaign: test-far
	$(TEST) -timeout 15m -parallel 3 $(CAMPAIGN)

.PHONY: test-containers
test-containers: test-far
	$(CONTAINED) -parallel 4 -skip '^TestFarAway$$' $(CONTAINERS)

.PHONY: test-oldest
test-oldest: ## test a cluster of the oldest NATS server that is supported; needs Docker; takes five minutes
	@mkdir -p bin
	NATS_SERVER_VERSION=$(OLDEST_NATS) $(CONTAINED) -run '^TestCluster$$' $(CONTAINERS)

# With the flags of "make build", which has then compiled what the fuzzer does not instrument.
.PHONY: fuzz
fuzz: ## fuzz each target for FUZZTIME (10s)
	@for package in $$(grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n 1 dirname | sort -u); do \
		program=$(CURDIR)/bin/fuzz/$${package##*/}.test found=$$(go env GOCACHE)/fuzz/$$(go list $$package) && \
		CGO_ENABLED=0 go test -c -fuzz . -tags $(TAGS) -trimpath -o $$program $$package && targets=$$($$program -test.list '^Fuzz') || exit 1; \
		for target in $$targets; do \
			echo "$$package $$target" && (cd $$package && $$program -test.run '^$$' -test.fuzz "^$$target$$" -test.fuzztime $(FUZZTIME) -test.fuzzcachedir $$found) || exit 1; \
		done; \
	done

.PHONY: bench
bench: ## run all benchmarks against their goals, or one part: make bench RUN=growth; takes some minutes
	go run ./integration/bench $(RUN:%=-run %)

.PHONY: chaos
chaos: ## kill and cut off a fleet of real processes for CHAOS_TIME (60s), and judge it
	go run ./integration/chaos -duration $(CHAOS_TIME)

# Not part of "make test": each planted bug needs a build of a package's tests, which takes some
# minutes in all, and it judges the tests. These check that each bug still fits the sources.
.PHONY: mutants
mutants: ## plant bugs one after another, and check that the packages' tests or the campaign find each; takes long
	go run ./integration/mutants
	$(TEST) -timeout 30m -parallel 3 -run '^TestMutantsAreFound$$' $(CAMPAIGN) -planted

.PHONY: alerts
alerts: $(PROMTOOL) ## check the alert rules, and test when they fire
	$(PROMTOOL) check rules --lint=all --lint-fatal deployments/prometheus/alerts.yaml
	$(PROMTOOL) test rules deployments/prometheus/alerts_test.yaml

.bin/promtool: Makefile
	GOBIN=$(CURDIR)/.bin CGO_ENABLED=0 go install github.com/prometheus/prometheus/cmd/promtool@$(PROM_VERSION)
	@touch $@

.PHONY: cover
cover: ## show the test coverage, without the container tests
	go test -coverprofile=coverage.out -coverpkg=./... $(PACKAGES)
	go tool cover -func=coverage.out | tail -n 1

# Linters compile what a package imports: with the flags of "make build" they need not.
LINTED := env CGO_ENABLED=0 GOFLAGS='-tags=$(TAGS) -trimpath'

.PHONY: lint
lint: $(LINT) ## vet, formatting, go.mod, and golangci-lint
	$(LINTED) go vet ./... && $(LINTED) go -C $(MANIFESTS) vet ./...
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt these: $$unformatted"; exit 1; }
	go mod tidy -diff && go -C $(MANIFESTS) mod tidy -diff
	$(LINTED) $(LINT) run && cd $(MANIFESTS) && $(LINTED) $(CURDIR)/$(LINT) run

$(LINT): Makefile
	GOBIN=$(CURDIR)/.bin CGO_ENABLED=0 go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	@touch $@

.PHONY: vuln
vuln: ## look for known vulnerabilities in reachable code; queries vuln.go.dev
	CGO_ENABLED=0 go run golang.org/x/vuln/cmd/govulncheck@$(VULN_VERSION) ./...

.PHONY: release-check
release-check: ## check that this commit can be released as VERSION, and extract its release notes
	@grep -qx '    newTag: $(VERSION)' $(MANIFESTS)/base/kustomization.yaml || { echo "$(MANIFESTS)/base: newTag is not $(VERSION)"; exit 1; }
	@mkdir -p bin && awk '/^## /{on=index($$2,"[$(VERSION:v%=%)]")} /^\[/{on=0} on' CHANGELOG.md >bin/release-notes.md
	@test -s bin/release-notes.md || { echo "CHANGELOG.md: there is no section [$(VERSION:v%=%)]"; exit 1; }

.PHONY: clean
clean: ## remove all build and coverage output
	rm -rf bin .bin dist coverage.out
