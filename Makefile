# Targets that a person types. Each makes the environment it needs; `make` alone lists them.
PYTHON ?= python3.11
VENV   ?= .venv
DEMO   ?= examples/demo.py

BIN := $(VENV)/bin
# The stamp carries a hash of what it was installed from: a checkout that only touches files installs nothing anew.
KEY   := $(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
STAMP := $(VENV)/.installed-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help venv demo check test test-vm format clean system-packages
.DELETE_ON_ERROR:

help:  ## This list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## Make .venv with every extra, from constraints.txt (about 3 GB)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "edgekit needs Python 3.11 or newer: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# By the environment, so that the build backend is pinned too: pip hands it on to the builds it starts.
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,examples,dev]'
	rm -f $(VENV)/.installed-*
	touch $@

demo: $(STAMP)  ## Compress, compile, verify, deploy and measure a real model on this machine
	$(BIN)/python $(DEMO)

check: $(STAMP)  ## Lint, types and the fast tests: what to run before each commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow and not hardware and not vm"

system-packages:  ## Install the system packages that the whole test suite needs (Debian, Ubuntu)
	bash scripts/install-system-packages.sh

test: $(STAMP) system-packages  ## Everything: lint, types, and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not hardware and not vm"

test-vm: $(STAMP)  ## Deploy to a whole virtual Pi of 1 GiB: out of memory, reboots, power cuts (20 min)
	$(BIN)/python -m tests.devices.vm
	mkdir -p build
	bash -o pipefail -c '$(BIN)/python -m pytest -v --no-header -m vm tests/vm 2>&1 | tee build/test-vm.log'

bench-%: $(STAMP)  ## Run benchmarks/<name>.py
	$(BIN)/python benchmarks/$*.py

format: $(STAMP)  ## Format the code and mend what the linter can mend safely
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## Remove the environment, caches and build results
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
