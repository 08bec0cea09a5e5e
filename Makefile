# Everything a person runs. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install demo train test unit lint format bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## a virtual environment in .venv with everything locked

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed, $$($(PYTHON) --version) found: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## the main job on real photographs, with a local object store: a report in a few minutes
	$(BIN)/python -m jobs.demo

train: $(READY) ## train: make train CONFIG=jobs/configs/question.toml SET="data.source=s3://my-bucket/images"
	$(BIN)/python -m jobs.train --config $(CONFIG) $(SET:%=--set %)

test: $(READY) lint ## lint, unit tests, then the tests with real components
	@command -v prometheus >/dev/null || echo "no prometheus on this machine: its tests are left out (Debian: apt install prometheus)"
	$(BIN)/python -m pytest -m "not integration"
	$(BIN)/python -m pytest -m "integration $$(command -v prometheus >/dev/null || echo 'and not prometheus')"

unit: $(READY) ## the fast tests alone
	$(BIN)/python -m pytest -m "not integration"

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure speed and memory, printed as JSON (about 15 minutes; keep the machine quiet)
	$(BIN)/python -m benchmarks.speed

lock: $(READY) ## resolve the dependencies of pyproject.toml anew
	$(BIN)/uv pip compile $(LOCK) --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile $(LOCK) --constraint requirements.lock --extra demo --extra cluster --extra dev --output-file requirements-dev.lock pyproject.toml
LOCK := --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11

clean: ## remove caches, shards and demo data, but no run's report
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache
