# Everything that is needed lies in .venv; nothing else is installed.

# For another Python, or other versions:  make PYTHON=python3.13 VENV=.venv-3.13 unit
PYTHON ?= python3
VENV := .venv
# The versions that are installed; with PINS= the newest that setup.cfg allows.
PINS := constraints.txt
ARGS ?=
# How many of the integration tests run at a time.
JOBS ?= 4
# make proofs LONG=1
LONG ?=

BIN := $(VENV)/bin
BENCH := build/bench
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(PINS),--constraint $(PINS))
TRIAL := -m twisted.trial --reporter=text --temp-directory=_trial_temp$(patsubst .venv%,%,$(VENV))
# What is installed, as it stands in constraints.txt.
FREEZE = $(1)/bin/python -m pip freeze --all --exclude pip --exclude domaeka | tr 'A-Z_' 'a-z-'
UNIT := $(patsubst tests/%.py,tests.%,$(wildcard tests/test_*.py))

# Each stamp stands on the one before it: pip never runs twice at once, even with make -j.
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
CHECKABLE := $(VENV)/.checkable

.PHONY: help run test unit integration proofs lint types rules coverage check fuzz
.PHONY: bench bench-quick bench-against bench-faults bench-phones bench-store bench-tools
.PHONY: newest oldest constraints pinned clean
.DEFAULT_GOAL := test

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

run: $(INSTALLED) ## the server, in the foreground: phones on 9000, HTTP on 8080; make run ARGS='--bots shop:bot'
	exec $(BIN)/twistd --nodaemon --pidfile= domaeka $(ARGS)

test: unit integration ## all tests

unit: $(TESTABLE) ## the tests without sockets: seconds
	$(BIN)/python $(TRIAL) $(UNIT)

# Most of their time they wait, for a phone that comes back or for a sweep: so they wait together.
integration: $(TESTABLE) ## the tests with real processes and sockets: 3 minutes
	$(BIN)/python $(TRIAL) --jobs=$(JOBS) tests.integration

# What they need from Debian is installed in .ci/run.  They judge processor time: one at a time.
proofs: $(TESTABLE) ## attacks, kills, faults, a set clock, benchmarks: minutes; make proofs LONG=1: more of each
	LONG='$(LONG)' $(BIN)/python $(TRIAL)-proofs tests.proofs

lint: $(CHECKABLE) ## ruff: mistakes and form
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(CHECKABLE) ## mypy
	$(BIN)/mypy

# Debian has promtool in its package prometheus; .ci/run installs it.
rules: ## the alert rules, where promtool is installed
	@if command -v promtool >/dev/null; then \
		promtool test rules etc/prometheus/domaeka.test.yml; \
	else echo "promtool is not installed: the alert rules are not tried"; fi

# It fails below the floor in setup.cfg.
coverage: $(CHECKABLE) ## which lines and branches the unit tests reach
	COVERAGE_FILE=$(CURDIR)/.coverage $(BIN)/coverage run $(TRIAL)-coverage $(UNIT)
	$(BIN)/coverage report

check: lint types rules test ## lint, types, rules, test: before each push (.ci/run: and proofs)

bench: ## what messages and phones cost: a quarter of an hour (docs/benchmarks.md)
bench-quick: ## the same, rougher, in less than 2 minutes
bench bench-quick: $(INSTALLED) bench-tools
	$(BIN)/python -m benchmarks $(if $(filter bench-quick,$@),--quick) $(ARGS)

bench-against: $(INSTALLED) bench-tools ## this checkout beside another revision: make bench-against REV=main
	@test -n '$(REV)' || { echo 'which revision? make bench-against REV=main' >&2; exit 2; }
	$(BIN)/python -m benchmarks --against '$(REV)' $(ARGS)

# As root, with Debian's packages iproute2 and nftables; else it says why not.
bench-faults: $(INSTALLED) ## how soon phones are back after faults of network and server: 7 minutes
	$(BIN)/python -m benchmarks.faults $(ARGS)

# With Debian's packages rhino and default-jdk-headless; else it says why not.
bench-phones: $(INSTALLED) ## bytes and processor time of a phone with the bridge script: 2 minutes
	$(BIN)/python -m benchmarks.phones $(ARGS)

# With Debian's packages postgresql and mariadb-server; else without those.
bench-store: $(TESTABLE) ## the chat log with 5 million lines, and an import of a million: a quarter of an hour
	$(BIN)/python -m benchmarks.store $(ARGS)

# Debian has what they need in its packages gcc, libc6-dev and libssl-dev.
bench-tools: $(BENCH)/loadgen $(BENCH)/bare_server ## what the benchmarks are built of in C

$(BENCH)/%: benchmarks/native/%.c benchmarks/native/common.h
	@mkdir -p $(@D)
	gcc -O2 -Wall -Wextra -o $@ $< -lcrypto

fuzz: $(TESTABLE) ## of the proofs: a million damaged inputs, others each time
	LONG=1 $(BIN)/python $(TRIAL) tests.proofs.test_fuzz

newest: ## the unit tests with the newest of everything that setup.cfg allows
	rm -rf .venv-newest
	$(MAKE) VENV=.venv-newest PINS= unit

oldest: ## the unit tests with the oldest that setup.cfg allows
	rm -rf .venv-oldest
	$(MAKE) VENV=.venv-oldest PINS=.venv-oldest.txt unit

# A floor is written NAME >= VERSION there, each on a line.
.venv-oldest.txt: setup.cfg
	sed -nE 's/^ +([a-z-]+)(\[[a-z]+\])? >= ([0-9.]+).*/\1 == \3/p' setup.cfg >$@

constraints: ## constraints.txt anew, from today's newest; then run make check
	rm -rf .venv-newest
	$(MAKE) VENV=.venv-newest PINS= .venv-newest/.checkable
	{ echo '# What make run and make test install, tested together.  Made by: make constraints'; \
		$(call FREEZE,.venv-newest) | LC_ALL=C sort; } >constraints.new
	mv constraints.new constraints.txt

# What a Python needs that the one constraints.txt was made with does not, is added there by hand.
pinned: $(TESTABLE) ## whether all that is installed stands in constraints.txt
	! { $(call FREEZE,$(VENV)) | grep -vxFf constraints.txt; }

clean: ## away with all that was made here
	rm -rf .venv .venv-* build dist *.egg-info _trial_temp* .mypy_cache .ruff_cache .hypothesis
	rm -f .coverage

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: try make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# What builds the project is installed first, so that its versions are those of PINS, too.
$(INSTALLED): $(MADE) $(PINS) setup.cfg pyproject.toml
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation --editable .
	touch $@

$(TESTABLE): $(INSTALLED)
	$(PIP) --no-build-isolation --editable '.[test]'
	touch $@

$(CHECKABLE): $(TESTABLE)
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@
