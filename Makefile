# Everything a person runs. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' spikewise/__init__.py)
IMAGE ?= localhost/spikewise:$(VERSION)$(VARIANT:%=-%)
S3_SERVER_IMAGE ?= localhost/spikewise-s3-server:$(VERSION)
CONFIG ?= jobs/configs/$(if $(filter submit manifests,$(MAKECMDGOALS)),gpu,question).toml
OVERLAY ?= gpu
SHAPE ?= job
ON_CLUSTER = $(NAMESPACE:%=--namespace %)
SUBMIT = $(BIN)/python -m jobs.submit --config $(CONFIG) $(SET:%=--set %) --overlay $(OVERLAY) --shape $(SHAPE) --image $(IMAGE) \
	$(SECRET:%=--secret %) $(ON_CLUSTER)

.PHONY: help install demo train test unit lint format bench lock clean
.PHONY: image image-s3-server cluster-data submit manifests status logs cancel e2e dashboard

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## a virtual environment in .venv with everything locked

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed, $$($(PYTHON) --version) found: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## the main job on real photographs, with a local S3 server: a report in a few minutes
	$(BIN)/python -m jobs.demo

train: $(READY) ## train: make train CONFIG=jobs/configs/question.toml SET="data.source=s3://my-bucket/images"
	$(BIN)/python -m jobs.train --config $(CONFIG) $(SET:%=--set %)

test: $(READY) lint ## lint, unit tests, then the tests with real components
	$(BIN)/python -m pytest -n 2 -m "not integration"
	$(BIN)/python -m pytest -m integration

unit: $(READY) ## the fast tests alone
	$(BIN)/python -m pytest -n 2 -m "not integration"

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure speed and memory, printed as JSON (about 15 minutes; keep the machine quiet)
	$(BIN)/python -m benchmarks.speed

image: ## the container image, with docker, podman or buildah: make image IMAGE=registry.example/spikewise:1 [VARIANT=gpu]
	docker/build $(IMAGE) $(VARIANT:%=--build-arg VARIANT=%) $(BUILD)

image-s3-server: ## the image of an S3 server for a cluster without a bucket
	docker/build $(S3_SERVER_IMAGE) --target s3-server $(BUILD)

cluster-data: $(READY) ## that S3 server in the cluster, with the demo's images
	$(BIN)/python -m jobs.cluster_data --image $(S3_SERVER_IMAGE) $(ON_CLUSTER)

submit: $(READY) ## run on a cluster: make submit CONFIG=F OVERLAY=local|gpu|spot|kueue [SHAPE=job|rayjob] IMAGE=I SET="run.name=first"
	$(SUBMIT)

manifests: $(READY) ## print what submit would apply, and touch nothing
	@$(SUBMIT) --dry-run

status: $(READY) ## of a run on a cluster: make status RUN=first (without RUN: the newest; when it is gone from there: STORAGE=s3://...)
	@$(BIN)/python -m jobs.cluster status $(RUN:%=--run %) $(STORAGE:%=--storage %) $(ON_CLUSTER)

logs: $(READY) ## the driver's log, followed: make logs RUN=first
	@$(BIN)/python -m jobs.cluster logs $(RUN:%=--run %) $(ON_CLUSTER)

cancel: $(READY) ## end a run; it saves a checkpoint first: make cancel RUN=first
	@$(BIN)/python -m jobs.cluster cancel $(RUN:%=--run %) $(ON_CLUSTER)

e2e: $(READY) ## runs, failures and mistakes on the cluster of the current context (about half an hour; images: see docs/cluster.md)
	SPIKEWISE_IMAGE=$(IMAGE) SPIKEWISE_S3_SERVER_IMAGE=$(S3_SERVER_IMAGE) $(BIN)/python -m pytest tests/e2e/run_on_cluster.py

dashboard: $(READY) ## write the Grafana dashboard's JSON anew
	$(BIN)/python -m k8s.monitoring.dashboard > k8s/monitoring/dashboard.json

lock: $(READY) ## resolve the dependencies of pyproject.toml anew
	$(LOCK) --output-file requirements.lock --group job
	$(LOCK) --constraint requirements.lock --output-file requirements-dev.lock --group job --group cluster --group demo --group dev
	$(LOCK) --constraint requirements-dev.lock --override docker/requirements-cpu.override --output-file docker/requirements-cpu.lock --group job --group cluster docker/requirements-cpu.in
	$(LOCK) --constraint requirements-dev.lock --output-file docker/requirements-gpu.lock --group job --group cluster --group gpu
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11

clean: ## remove caches, shards and demo data, but no run's report
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache
