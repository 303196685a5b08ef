# ppworker: every task by one word. `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
# Test processes side by side.
JOBS ?= 2
# Passed on to pytest, e.g. `make unit ARGS="-k retry -x"`.
ARGS ?=

# The first Python that fits. 3.12 and 3.11 come first: for them a Redis comes as a wheel.
# A name alone proves little (it may be a stub, or lack venv), so each is asked.
FITS = import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3.14 python3 python; do \
	"$$p" -c '$(FITS)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help install demo test unit properties contract fuzz-api outage stateful mutants promises chaos chaos-quick test-system oracle check lint format bench bench-bulk bench-lists docs requirements clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.installed ## Make .venv with everything in it (no time at all when nothing changed)
	@:

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: no Python 3.11 or newer (with venv) was found." >&2; \
		echo "      Install one (Debian: apt-get install python3 python3-venv)," >&2; \
		echo "      or name one: make install PYTHON=/path/to/python3.12" >&2; exit 1; \
	elif ! "$(PYTHON)" -c '$(FITS)'; then \
		echo "make: $(PYTHON) is not a Python 3.11 or newer with venv." >&2; exit 1; \
	fi
	@echo "$(VENV): made with $(PYTHON), $$("$(PYTHON)" -V)"
	@"$(PYTHON)" -m venv --clear $(VENV)

# Two steps, so that an edit of pyproject.toml does not check ninety packages again.
$(VENV)/.packages: requirements/dev.txt requirements/build.txt | $(BIN)/python
	@echo "$(VENV): pinned packages, checked by their hashes (a minute or two on the first time)"
	@$(PIP) install --require-hashes -r requirements/dev.txt -r requirements/build.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.packages pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "$(VENV): ready, $$($(BIN)/python -V)"

demo: install ## Carry a folder of files to annotations and label stats, with real models
	@$(BIN)/python examples/demo.py $(ARGS)

test: unit ## Run all tests that need nothing but this checkout: unit, house, integration, stateful, acceptance
	$(BIN)/python -m pytest tests/house tests/integration tests/stateful tests/acceptance -m "not system and not long" -n $(JOBS) --dist loadgroup $(ARGS)

unit: install ## Run the unit tests: no server, a few seconds
	$(BIN)/python -m pytest tests/unit $(ARGS)

properties: install ## Run the property tests of the pure rules with many examples
	PPWORKER_TEST_PROFILE=thorough $(BIN)/python -m pytest tests/unit -n $(JOBS) -m hypothesis $(ARGS)

contract: install ## Ask the HTTP API whatever its published schema allows and forbids: 1,000 cases
	$(BIN)/python -m pytest tests/contract -s $(ARGS)

fuzz-api: install ## The same with 20,000 cases; PPWORKER_TEST_API_SEED=N repeats a run
	PPWORKER_TEST_API_CASES=20000 $(BIN)/python -m pytest tests/contract -s $(ARGS)

outage: install ## Take PostgreSQL away for two minutes under a thousand upload messages
	PPWORKER_TEST_OUTAGE_S=120 $(BIN)/python -m pytest tests/acceptance/test_messages.py -k postgresql_away -s $(ARGS)

stateful: install ## Hold 1,000 random histories of people, workers and sweeps against every invariant: half an hour
	PPWORKER_TEST_HISTORIES=1000 PPWORKER_TEST_HISTORY_STEPS=60 $(BIN)/python -m pytest tests/stateful -s $(ARGS)

mutants: install ## Break a copy of the code in each of the listed ways: the histories must tell (ARGS="-k fence": some)
	PYTHONPATH=tests $(BIN)/python -m stateful.mutants $(ARGS)

promises: install ## Prove every promise that has a test, the long ones too, and keep the figures for the docs
	PPWORKER_TEST_PROMISES=benchmarks/results/promises $(BIN)/python -m pytest tests -m "promise and not system" -n 0 $(ARGS)

chaos: install ## Break a running ppworker in every way, and keep the figures (hours; goes on where it stopped; FORCE=1: anew)
	$(BIN)/ppworker chaos --results benchmarks/results/promises $(if $(FORCE),,--resume) $(ARGS)

chaos-quick: install ## The same with small loads in minutes: fails where a promise of correctness breaks
	$(BIN)/ppworker chaos --quick $(ARGS)

test-system: install ## Run the tests that need Debian's packages redis-server, postgresql, pgbouncer and prometheus
	.ci/debian-packages.sh
	$(BIN)/python -m pytest tests -m system $(ARGS)

oracle: install ## Ask Datumaro, in an environment of its own, what our COCO and YOLO archives say
	@test -x $(VENV)-oracle/bin/python || "$(BIN)/python" -m venv $(VENV)-oracle
	@$(VENV)-oracle/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/oracle.txt
	PYTHONPATH=tests $(BIN)/python -m oracle.compare $(VENV)-oracle/bin/python

check: lint unit ## Run what should pass before every commit: lint and the unit tests

lint: install ## Check style, format, types and import contracts; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: install ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

bench: install ## Measure against the same work done by hand (ARGS=--quick: one short round)
	$(BIN)/python -m benchmarks $(ARGS)

bench-bulk: install ## Measure many items in one request and archives of many files (ARGS="--items 5000": fewer)
	$(BIN)/python -m benchmarks.bulk $(ARGS)

bench-lists: install ## Measure what lists cost at a million items (ARGS="--items 100000": fewer)
	$(BIN)/python -m benchmarks.lists $(ARGS)

docs: install ## Write those parts of docs/ anew that say what the code says
	@$(BIN)/python docs/generate.py

requirements: install ## Pin every package anew in requirements/, within the bounds of pyproject.toml
	@$(PIP) install "uv>=0.8"
	@.ci/pin $(BIN)/uv

clean: ## Remove caches and .venv; data folders stay
	rm -rf $(VENV) $(VENV)-oracle .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov dist
	find src tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} +
