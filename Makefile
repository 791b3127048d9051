# Two commands suffice on a fresh machine: `make train` and `make test`. Both set up what they need first.
# Overridable:  PYTHON=python3.12  VENV=/path/to/venv  ARGS="attention=none seed=1"  RUNS=outputs

PYTHON ?= python3
VENV ?= .venv
RUNS ?= outputs
ARGS ?=
JOBS ?= 2
EXTRAS := export,joblib,slurm,parquet,lora,docs,browser,notebook

# uv takes the torch build that fits this machine's driver, or the one for the CPU; pip has no such option: docs/install.md
UV ?= $(shell command -v uv)
TORCH_BACKEND ?= auto

BIN := $(VENV)/bin
STAMP := $(VENV)/.dcal-installed
# --no-compile: byte-compiling the thousands of modules of torch that nobody imports takes longer than all of the rest
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python --torch-backend=$(TORCH_BACKEND),$(BIN)/python -m pip install --no-compile)

.DEFAULT_GOAL := help
.PHONY: help setup extras train test test-lowest test-newest kill-test lint bench results docs pages sync clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create the virtual environment (VENV, default .venv) and install dcal into it

$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

extras: $(STAMP) ## install what is optional: export, launchers, parquet, notebook, documentation, browser tests
	$(INSTALL) -c constraints.txt -e '.[dev,$(EXTRAS),openvino,dashboard]'

train: $(STAMP) ## train DCAL on the embedded synthetic birds (ARGS="key=value ..." changes anything)
	$(BIN)/dcal-train experiment=smoke/fgvc $(ARGS)

test: $(STAMP) ## run the tests, JOBS files at a time
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(ARGS)

# The two ends of what setup.cfg allows, each in an environment of its own (about 6 GB): `make test` runs with what is
# pinned between them. With a Python of that end, too: make test-lowest PYTHON=python3.10
VENV_LOWEST ?= .venv-lowest
VENV_NEWEST ?= .venv-newest

test-lowest: $(VENV_LOWEST)/.dcal-installed ## run the tests with the oldest versions that setup.cfg allows (ARGS narrows)
	$(VENV_LOWEST)/bin/python -m pytest -q -n $(JOBS) --dist loadfile $(ARGS)

test-newest: $(VENV_NEWEST)/.dcal-installed ## run the tests with the newest versions there are (ARGS narrows)
	$(VENV_NEWEST)/bin/python -m pytest -q -n $(JOBS) --dist loadfile $(ARGS)

# pip cannot take the oldest versions. Where uv is not installed, it comes into the environment itself, and PyPI's torch
# with it, as with pip.
$(VENV_LOWEST)/.dcal-installed $(VENV_NEWEST)/.dcal-installed: %/.dcal-installed: setup.cfg pyproject.toml
	test -x $*/bin/python || $(PYTHON) -m venv $*
	$(if $(UV),,$*/bin/python -m pip install -q uv)
	$(or $(UV),$*/bin/uv) pip install --python $*/bin/python $(if $(UV),--torch-backend=$(TORCH_BACKEND)) \
		$(if $(filter $(VENV_LOWEST),$*),--resolution lowest-direct,--upgrade) -e '.[dev,$(EXTRAS)]'
	@touch $@

kill-test: $(STAMP) ## kill training at random moments, many times, and compare (ARGS="--kills 50 bf16" narrows it, ARGS="device=cuda deterministic=true")
	$(BIN)/python tests/kill_harness.py $(ARGS)

lint: $(STAMP) ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## measure speed and memory against the plain backbone
	$(BIN)/dcal-bench $(ARGS)

results: $(STAMP) ## collect the finished runs and write records, tables and figures
	$(BIN)/dcal-results write=true $(ARGS)

docs: $(STAMP) ## build the site of the documentation into build/site
	$(INSTALL) -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

pages: $(STAMP) ## write the generated pages of docs/ (ARGS="api datasets" narrows it)
	$(BIN)/python -m docs.generate $(ARGS)

sync: $(STAMP) ## upload the offline W&B runs under RUNS (default outputs/)
	@test -d $(RUNS) || { echo "no runs under $(RUNS)/ yet: train first, or say RUNS=folder"; exit 1; }
	find $(RUNS) -type d -name 'offline-run-*' -exec $(BIN)/wandb sync {} +

clean: ## remove build products and caches (runs and the environment stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dcal tests -type d -name __pycache__ -prune -exec rm -rf {} +
