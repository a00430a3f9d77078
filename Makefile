# nodenet. `make help` says what there is.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PREFIX  ?= /usr
SYSCONF ?= /etc
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 10s
SIM_SEEDS ?= 1200
SOAK ?= 30m
FIG_NODES ?= 300
# sudo's PATH lacks the place where Go's archive unpacks to, and a user's on
# Debian the directories of sysctl(8) and nft(8).
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
# The version is VERSION. Without this Go asks git as well, and refuses to
# build where git refuses: root in another user's checkout.
export GOFLAGS := $(strip $(filter-out -buildvcs=false,$(shell go env GOFLAGS 2>/dev/null)) -buildvcs=false)
# What is not -race is compiled alike wherever it is used, thus once: the
# binary, what the linters read, the long runs. -vet=off: lint has done that.
PLAIN := CGO_ENABLED=0 GOFLAGS='$(GOFLAGS) -trimpath'
GOTEST := ./.ci/gotest -vet=off -count=1
# The linter's version is that of .ci/deps.
STATICCHECK := $(firstword $(wildcard bin/staticcheck) staticcheck)

.PHONY: build install test test-unit test-e2e lint fuzz golden docs bench bench-gossip bench-dns bench-lb bench-boot soak demo clean help root go deps

build: go ## build ./bin/nodectl
	$(PLAIN) go build -ldflags '$(LDFLAGS)' -o bin/nodectl ./cmd/nodectl

install: build ## install to $(DESTDIR)$(PREFIX); an existing Nodefile stays
	install -D -m 755 bin/nodectl $(DESTDIR)$(PREFIX)/bin/nodectl
	install -D -m 644 packaging/systemd/nodenet.service $(DESTDIR)$(PREFIX)/lib/systemd/system/nodenet.service
	sed -i 's|/usr/bin/nodectl|$(PREFIX)/bin/nodectl|' $(DESTDIR)$(PREFIX)/lib/systemd/system/nodenet.service
	install -D -m 644 packaging/systemd/nodenet.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/nodenet.conf
	install -D -m 644 packaging/systemd/10-nodenet.link $(DESTDIR)$(PREFIX)/lib/systemd/network/10-nodenet.link
	install -D -m 644 packaging/systemd/10-nodenet.network $(DESTDIR)$(PREFIX)/lib/systemd/network/10-nodenet.network
	install -D -m 644 packaging/systemd/networkd.conf $(DESTDIR)$(SYSCONF)/systemd/networkd.conf.d/nodenet.conf
	install -D -m 644 packaging/networkmanager/nodenet.conf $(DESTDIR)$(SYSCONF)/NetworkManager/conf.d/nodenet.conf
	install -D -m 644 packaging/iproute2/nodenet.conf $(DESTDIR)$(SYSCONF)/iproute2/rt_protos.d/nodenet.conf
	test -e $(DESTDIR)$(SYSCONF)/nodenet/Nodefile || \
	  install -D -m 644 packaging/Nodefile $(DESTDIR)$(SYSCONF)/nodenet/Nodefile
	bin/nodectl man $(DESTDIR)$(PREFIX)/share/man/man8
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	bin/nodectl completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/nodectl
	@if [ -z "$(DESTDIR)" ] && command -v systemd-sysusers >/dev/null; then systemd-sysusers $(PREFIX)/lib/sysusers.d/nodenet.conf; fi
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

test: root go deps ## everything CI runs: lint, unit tests, end to end; as root
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory build
	@echo '== unit tests, -race'
	@$(GOTEST) -race -timeout 10m $$(go list ./... | grep -v '/test/' | grep -v '/test$$') ./test/arch
	@echo '== address space, long'
	@$(PLAIN) $(GOTEST) -timeout 5m ./ipam -run TestCluster -rapid.checks=2000 -rapid.steps=60
	@echo '== memory of a large cluster'
	@$(PLAIN) $(GOTEST) -timeout 5m ./state -run '^TestHeapOfALargeCluster$$'
	@echo '== simulated clusters, $(SIM_SEEDS) seeds'
	@$(PLAIN) $(GOTEST) -timeout 15m ./gossip -run '^TestSim$$' -sim.seeds=$(SIM_SEEDS)
	@$(MAKE) --no-print-directory test-e2e

test-e2e: root build ## end to end, in network namespaces; as root
	@echo '== end to end, -race'
	@PATH="$(CURDIR)/bin:$$PATH" NODENET_E2E=1 $(GOTEST) -race -p 2 -timeout 15m ./test/...

test-unit: go ## tests that need no privileges
	go test ./...

root:
	@[ "$$(id -u)" = 0 ] || { echo 'make $(MAKECMDGOALS) makes network namespaces and must run as root: sudo make $(MAKECMDGOALS). Without root there are: make build, make test-unit' >&2; exit 1; }

go:
	@command -v go >/dev/null || { echo 'Go is missing: unpack 1.26 or newer to /usr/local/go, see https://go.dev/doc/install' >&2; exit 1; }
	@case "$$(go env GOVERSION)" in go1.[0-9]|go1.[0-9].*|go1.1[0-9]*|go1.20*) \
	  echo "$$(go env GOVERSION) in $$(command -v go) is too old: 1.26 or newer is needed, see https://go.dev/doc/install" >&2; exit 1;; esac

deps: go
	@./.ci/deps

lint: go ## gofmt, go vet, staticcheck
	@echo '== lint'
	@bad=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null | grep . || find . -name '*.go')); \
	  [ -z "$$bad" ] || { echo "gofmt these files:" $$bad >&2; exit 1; }
	@$(PLAIN) go vet ./...
	@command -v $(STATICCHECK) >/dev/null || { echo 'staticcheck is missing: run .ci/deps' >&2; exit 1; }
	@$(PLAIN) $(STATICCHECK) ./...

fuzz: go ## every fuzz target for FUZZTIME (10s)
	@grep -rn --include='*_test.go' '^func Fuzz' . | sed -E 's|^(.*)/[^/]*:[0-9]+:func (Fuzz[A-Za-z0-9_]*)\(.*|\1 \2|' | sort -u | \
	  while read -r dir name; do \
	    echo "== $$dir $$name"; go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) $$dir || exit 1; \
	  done

golden: go ## write the golden files anew; then read the diff
	go test $$(grep -rl --include='*_test.go' 'flag.Bool("update"' . | xargs -n1 dirname | sort -u) -update
	@git --no-pager diff --stat -- '*testdata*' 2>/dev/null || true

docs: root build ## write the labs' pages anew, with real output; then read the diff
	@PATH="$(CURDIR)/bin:$$PATH" NODENET_E2E=1 NODENET_UPDATE_DOCS=1 go test -count=1 ./test/labs
	@git --no-pager diff --stat -- docs 2>/dev/null || true

bench: go ## benchmarks
	go test -run '^$$' -bench . -benchmem ./...

bench-gossip: go ## the figures of gossip and whether they hold; FIG_NODES=1000 wants 8 GB and minutes
	@mkdir -p bin; go test -count=1 -timeout 30m ./gossip -run '^TestFigures$$' -figures -figures.nodes=$(FIG_NODES) -v >bin/figures.log 2>&1; status=$$?; \
	  grep -v '^ *--- PASS\|^=== \|took' bin/figures.log; exit $$status

bench-lb: root go ## the figures of services and whether they hold, as root: in about three minutes
	@./.ci/deps-bench haproxy:haproxy nginx:nginx+libnginx-mod-stream || echo 'haproxy and nginx cannot be installed: left out' >&2
	@mkdir -p bin; go test -count=1 -timeout 15m ./test/bench/lb -run '^TestFigures$$' -figures -v >bin/figures-lb.log 2>&1; status=$$?; \
	  grep -v '^ *--- PASS\|^=== \|took' bin/figures-lb.log; exit $$status

soak: go ## simulated clusters with fresh seeds for SOAK (30m); a failure says how to replay it
	@go test -c -o bin/soak.test ./gossip
	@end=$$(( $$(date +%s) + $$(echo '$(SOAK)' | sed 's/h$$/*3600/; s/m$$/*60/; s/s$$//') )); first=$$(( $$(date +%s) * 1000 )); ran=0; bad=0; \
	while [ $$(date +%s) -lt $$end ]; do \
	  bin/soak.test -test.run '^TestSim$$' -sim.first=$$first -sim.seeds=100 -sim.rounds=3 -test.timeout 30m >bin/soak.log 2>&1 || { \
	    bad=$$((bad + 1)); grep -v '^=== \|--- PASS' bin/soak.log; }; \
	  first=$$((first + 100)); ran=$$((ran + 100)); echo "$$ran seeds, $$bad batches with failures"; \
	done; [ $$bad = 0 ]

bench-dns: root go ## the name server beside nsd, knot, unbound, dnsmasq: queries a CPU-second and more; as root
	@./.ci/deps-bench
	go build -o bin/bench-dns ./test/bench/dns
	@./bin/bench-dns $(BENCHFLAGS)
	@go test -run '^$$' -bench ZoneMemory -benchtime 1x ./dns | grep B/name

bench-boot: root go ## how long a cold boot from saved state takes; as root
	go test -count=1 -v -run '^TestColdBoot$$' ./test/faults | grep 'cold boot'

demo: root build ## three nodes in namespaces, with commentary; as root
	@./bin/nodectl lab demo

clean: ## remove what was built
	rm -rf bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile
