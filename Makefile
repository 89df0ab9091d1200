# Everything a developer or an operator types. `make demo` and `make test` install by themselves.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := all,dev
# Installed without what they ask for: openpi-client wants numpy 1 and works with numpy 2; of gym-hil
# the Panda's model is used and none of its input libraries.
ALONE := openpi-client==0.1.2 gym-hil==0.1.14
LIBRARIES := gl usb compiler
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadscope

.PHONY: help install system-check demo test test-fast test-all check audit format bench \
    conformance-franka screenshots clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## create .venv and install everything that is pinned in constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@python=$$(scripts/find-python); \
	[ -x $(BIN)/python ] || { echo "creating $(VENV) with $$python"; "$$python" -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
	    -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
	    --no-deps $(ALONE)
	@touch $@

system-check:
	@scripts/system-packages $(LIBRARIES)

demo: LIBRARIES := gl
demo: system-check $(STAMP) ## a virtual ALOHA station records three episodes (under two minutes)
	$(BIN)/robot-stack demo

test test-all: LIBRARIES += postgresql browser
test: system-check $(STAMP) ## all tests but the exhaustive ones
	$(PYTEST) -m "not exhaustive"

test-fast: $(STAMP) ## a first look, in five minutes: no PostgreSQL, and not the site's security suite
	$(PYTEST) -m "not slow and not exhaustive" -k "not postgresql" --ignore tests/crowd/security

test-all: system-check $(STAMP) ## everything, with 10,000 new examples where a property is checked
	ROBOT_STACK_NEW_EXAMPLES=1 $(PYTEST)

check: $(STAMP) ## what CI checks: style, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(STAMP) ## known holes of pinned versions, from PyPI or ADVISORIES=(a clone of pypa/advisory-database)
	@# --strict: else what the index does not answer for is passed over and the audit succeeds. A
	@# local version (torch's +cpu) is none of PyPI's.
	sed -E 's/\+[[:alnum:].]+$$//' constraints.txt | \
	    $(if $(ADVISORIES),$(BIN)/python scripts/audit_offline.py $(ADVISORIES),$(BIN)/pip-audit) \
	    --strict --requirement /dev/stdin --no-deps --disable-pip --progress-spinner off

format: $(STAMP) ## let ruff format and mend what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: system-check $(STAMP) ## every benchmark, one after the other
	@for name in $$($(BIN)/robot-stack bench | cut -d' ' -f1); do \
	    echo "== $$name"; $(BIN)/robot-stack bench $$name; done

conformance-franka: system-check $(STAMP) ## Franka's client libraries against the virtual arm
	$(BIN)/robot-stack bench franka_conformance

screenshots: LIBRARIES := gl browser
screenshots: system-check $(STAMP) ## every page of the public site at phone, tablet and desktop size
	$(BIN)/python scripts/screenshots.py

clean: ## remove what can be made again (episodes stay)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
