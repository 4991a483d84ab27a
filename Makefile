# Everything that is needed lies in .venv; nothing else is installed.
#
#   make run     the server, in the foreground: phones on 9000, HTTP on 8080
#                (options: make run ARGS='--bots shop:bot')
#   make test    all tests           make unit    those without sockets: seconds
#   make lint    ruff                make types   mypy
#   make check   lint, types, test   make bench   what messages, phones, scrapes cost
#   make fuzz    a million damaged inputs, others each time

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TRIAL := $(BIN)/python -m twisted.trial --reporter=text
UNIT := $(patsubst tests/%.py,tests.%,$(wildcard tests/test_*.py))
ARGS ?=

# Each stamp stands on the one before it: pip never runs twice at once, even with make -j.
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
CHECKABLE := $(VENV)/.checkable

.PHONY: run test unit integration lint types rules check bench fuzz clean
.DEFAULT_GOAL := test

run: $(INSTALLED)
	exec $(BIN)/twistd --nodaemon --pidfile= domaeka $(ARGS)

test: unit integration

unit: $(TESTABLE)
	$(TRIAL) $(UNIT)

integration: $(TESTABLE)
	$(TRIAL) tests.integration

lint: $(CHECKABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(CHECKABLE)
	$(BIN)/mypy

check: lint types rules test

# Debian has promtool in its package prometheus; .ci/run installs it.
rules:
	@if command -v promtool >/dev/null; then \
		promtool test rules etc/prometheus/domaeka.test.yml; \
	else echo "promtool is not installed: the alert rules are not tried"; fi

bench: $(TESTABLE)
	$(BIN)/python -m benchmarks

fuzz: $(TESTABLE)
	FUZZ_INPUTS=1000000 FUZZ_SEED=$$(date +%s) $(TRIAL) tests.integration.test_fuzz

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .mypy_cache .ruff_cache .hypothesis

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: try make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(INSTALLED): $(MADE) setup.cfg pyproject.toml
	$(PIP) --editable .
	touch $@

$(TESTABLE): $(INSTALLED)
	$(PIP) --editable '.[test]'
	touch $@

$(CHECKABLE): $(TESTABLE)
	$(PIP) --editable '.[dev]'
	touch $@
