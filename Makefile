# Everything a person runs. `make help` lists it.
#   make PYTHON=python3.12 VENV=.venv-3.12 unit     uses another Python, in another virtual environment
.DEFAULT_GOAL := help
SHELL := /bin/bash

# Exits with 0 in a Python that is supported and can create virtual environments. On Debian, venv needs a package of its own.
IS_SUPPORTED = 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
# The newest supported Python. Each candidate is run, because a pyenv shim exists even if its version is not active.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c $(IS_SUPPORTED) 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip
READY := $(VENV)/.ready

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' spikewise/__init__.py)
IMAGE ?= localhost/spikewise:$(VERSION)$(VARIANT:%=-%)
S3_SERVER_IMAGE ?= localhost/spikewise-s3-server:$(VERSION)
CONFIG ?= jobs/configs/$(if $(filter submit manifests,$(MAKECMDGOALS)),gpu,question).toml
OVERLAY ?= gpu
SHAPE ?= job
# $(call option,set,SET): --set with the value of SET, quoted for the shell exactly as the user wrote it; nothing if SET is empty.
option = $(if $(value $(2)),--$(1) $(call quoted,$(value $(2))))
quoted = '$(subst ','\'',$(1))'
ON_CLUSTER = $(call option,namespace,NAMESPACE)
SUBMIT = $(BIN)/python -m jobs.submit --config $(call quoted,$(CONFIG)) $(call option,set,SET) --overlay $(call quoted,$(OVERLAY)) \
	--shape $(call quoted,$(SHAPE)) --image $(call quoted,$(IMAGE)) $(call option,secret,SECRET) $(ON_CLUSTER)

.PHONY: help install demo train replay test unit coverage lint format bench bench-diagnosis wheel lock clean
.PHONY: image image-s3-server cluster-data submit manifests status logs cancel e2e dashboard

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## create .venv with every locked dependency; update it after the lock has changed

$(READY): requirements-dev.lock pyproject.toml
	@$(or $(PYTHON),false) -c $(IS_SUPPORTED) 2>/dev/null || { echo "$(if $(PYTHON),$(PYTHON) is not a Python 3.11 to 3.13 with venv,Found no Python 3.11 to 3.13 with venv). Fix:" \
		"install one (Debian: apt install python3 python3-venv), or name one: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.13" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing $$(grep -c '^[a-z].*==' requirements-dev.lock) packages; this takes one to three minutes"
	@set -o pipefail; $(PIP) install --require-hashes -r requirements-dev.lock | awk '/^Collecting/ {if (++n % 25 == 0) print "  " n \
		" packages found"} /^Installing/ {print "  all found; installing them"} {fflush()}'
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## run the whole job on demo photographs with a local S3 server; writes a report in a few minutes
	$(BIN)/python -m jobs.demo

train: $(READY) ## train on this machine: make train CONFIG=jobs/configs/question.toml SET="data.source=s3://my-bucket/images"
	$(BIN)/python -m jobs.train --config $(call quoted,$(CONFIG)) $(call option,set,SET)

replay: $(READY) ## train a spike again, to prove its remedy: make replay RUN=first CONFIG=F SPIKE=46 [SET="model.momentum=0.9"]
	$(BIN)/python -m jobs.replay $(call option,run,RUN) $(or $(call option,storage,STORAGE),--config $(call quoted,$(CONFIG))) \
		$(or $(call option,epoch,EPOCH),$(call option,spike,SPIKE)) $(call option,set,SET)

test: $(READY) lint ## lint, run the unit tests, then the integration tests (about 25 minutes on two cores)
	$(PYTEST) -m "not integration"
	$(PYTEST) -m integration

unit: $(READY) ## run the unit tests only (about three minutes on two cores)
	$(PYTEST) -m "not integration"
# All tests of a module in one process, which then traces its TensorFlow functions and starts its servers once. If such a process
# dies, the tests end: pytest-xdist would wait for ever for those that it had not run yet.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

coverage: $(READY) ## run the unit tests and print how much of spikewise, trainer and jobs they cover
	$(PYTEST) -m "not integration" --cov --cov-report=term

lint: $(READY) ## check style and types with ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## format the code with ruff and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure speed and memory; prints JSON (about 15 minutes; keep the machine quiet)
	$(BIN)/python -m benchmarks.speed

bench-diagnosis: $(READY) ## measure how often the diagnosis is right: injected and natural spikes, standing causes (three hours; resumes; prints JSON)
	$(BIN)/python -m benchmarks.spike_causes
	$(BIN)/python -m benchmarks.natural_spikes --spikes
	$(BIN)/python -m benchmarks.standing_causes

wheel: $(READY) ## build the library's wheel in dist/
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT \
		&& cp -r spikewise pyproject.toml README.md LICENSE "$$copy" && rm -f dist/spikewise-*.whl \
		&& $(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist "$$copy" && ls dist/spikewise-*.whl

image: ## build the image with docker, podman or buildah: make image IMAGE=registry.example/spikewise:1 [VARIANT=gpu]
	docker/build $(call quoted,$(IMAGE)) $(VARIANT:%=--build-arg VARIANT=%) $(BUILD)

image-s3-server: ## build the image of the S3 server, for a cluster without a bucket
	docker/build $(call quoted,$(S3_SERVER_IMAGE)) --target s3-server $(BUILD)

cluster-data: $(READY) ## start that S3 server in the cluster and upload the demo's images
	$(BIN)/python -m jobs.cluster_data --image $(call quoted,$(S3_SERVER_IMAGE)) $(ON_CLUSTER)

submit: $(READY) ## train on a cluster: make submit CONFIG=F OVERLAY=local|cpu|gpu|spot|kueue [SHAPE=job|rayjob] IMAGE=I SET="run.name=first" (only gpu has GPUs)
	$(SUBMIT)

manifests: $(READY) ## print what submit would apply, without applying it
	@$(SUBMIT) --dry-run

status: $(READY) ## show a run: make status RUN=first (default: the newest; STORAGE=s3://... once it has left the cluster)
	@$(BIN)/python -m jobs.cluster status $(call option,run,RUN) $(call option,storage,STORAGE) $(ON_CLUSTER)

logs: $(READY) ## follow the driver's log: make logs RUN=first
	@$(BIN)/python -m jobs.cluster logs $(call option,run,RUN) $(ON_CLUSTER)

cancel: $(READY) ## stop a run after it has saved a checkpoint: make cancel RUN=first
	@$(BIN)/python -m jobs.cluster cancel $(call option,run,RUN) $(ON_CLUSTER)

e2e: $(READY) ## test on the cluster of the current kubectl context (about half an hour; see docs/cluster.md)
	SPIKEWISE_IMAGE=$(call quoted,$(IMAGE)) SPIKEWISE_S3_SERVER_IMAGE=$(call quoted,$(S3_SERVER_IMAGE)) $(BIN)/python -m pytest tests/e2e/run_on_cluster.py

dashboard: $(READY) ## regenerate the JSON of the Grafana dashboard
	$(BIN)/python -m k8s.monitoring.dashboard > k8s/monitoring/dashboard.json

lock: $(READY) ## update the lock files after a change of the dependencies in pyproject.toml
	$(LOCK) --output-file requirements.lock --group job
	$(LOCK) --constraint requirements.lock --output-file requirements-dev.lock --group job --group cluster --group demo --group dev
	$(LOCK) --constraint requirements-dev.lock --override docker/requirements-cpu.override --output-file docker/requirements-cpu.lock --group job --group cluster docker/requirements-cpu.in
	$(LOCK) --constraint requirements-dev.lock --output-file docker/requirements-gpu.lock --group job --group cluster --group gpu
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11

clean: ## remove caches, packed images, demo data and built wheels; keep runs/ and .venv
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache dist
