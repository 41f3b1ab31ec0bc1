# `make sweep` and `make test` set up all they need: uv, the locked dependencies and the llama.cpp runtime.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := $(UV) run --frozen --no-sync

.PHONY: help setup sweep test lab check bench image ui clean

help:  ## show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: .venv/.synced  ## install the locked dependencies into .venv

.venv/.synced: pyproject.toml uv.lock
	@$(PYTHON) deployments/bootstrap.py
	@$(UV) sync --frozen --quiet
	@touch $@

sweep: setup  ## measure this machine: three local servers, three models, a few minutes
	@$(RUN) tokensweep run local --yes

# Most tests wait for processes, so two at a time take half as long on two CPUs. JOBS=0 runs them one after the other.
JOBS ?= 2

test: setup  ## every test that can run here
	@$(RUN) pytest -q -n $(JOBS) --dist loadfile

lab: setup  ## all five vendors at once, on micro-VMs behind emulators of their APIs (root on Linux)
	@$(RUN) python -u -m tests.lab.all_vendors

chaos: setup  ## kill the controller at every call and commit, then thousands of random interleavings
	@$(RUN) python -m tests.chaos

check: setup  ## format, lint, types, layers, Python version of the agent
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) lint-imports
	@$(RUN) vermin --no-tips --violations -t=3.9- tasks/domain agent-image/agent

bench: setup  ## our own benchmarks: speed truth, pipeline, guard, time to first bench
	@$(RUN) python -m tests.benchmarks

# IMAGE="--arch amd64", "--variant cuda --gpus hopper", "--base registry": see agent-image/build_image.py.
image: setup  ## build and test the agent's image and the runtime's tarballs, without a registry (root on Debian)
	@$(PYTHON) deployments/bootstrap.py image
	@$(RUN) python agent-image/build_image.py $(IMAGE)

ui: setup  ## Prefect UI with the sweep form on http://127.0.0.1:4200
	@$(RUN) tokensweep ui

clean:  ## remove what this checkout made (the lake too)
	rm -rf var .venv .tools
