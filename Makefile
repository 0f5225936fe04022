# The commands of this project. Plain `make` lists them.
#
# Each sets up .venv first, once: it is made again only when pyproject.toml or constraints.txt changes.
# PYTHON=python3.12 picks another interpreter, PIP_ARGS goes to pip (an index, a cache, --no-index), and
# VENV= an environment that is there already, such as conda's: make test VENV=$$CONDA_PREFIX

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(or $(firstword $(foreach python,python3.11 python3 python3.12 python3.13,\
	$(shell $(python) -c '$(SUPPORTED)' 2>/dev/null && echo $(python)))),python3)
PIP_ARGS ?=
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
AUDIT := $(VENV)/.audit
COMPOSE ?= $(if $(shell docker compose version 2>/dev/null),docker compose,docker-compose)
NOTEBOOKS := $(sort $(wildcard notebooks/0[0-6]_*.ipynb))
PIP := -m pip --disable-pip-version-check install -qq $(PIP_ARGS)

# Tests wait much: one process more than there are cores, each with whole files, as what costs is shared within a file.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(6, (os.cpu_count() or 1) + 1))')

# 05_live joins a stack that runs already; nobody's is at port 9, so that it starts its own.
ALONE := FRAUDLIB_API_PORT=9

# What differs from run to run stays out of the kept outputs: times, widgets of progress bars, kernel warnings.
EXECUTE := $(ALONE) TQDM_DISABLE=1 $(BIN)/jupyter-nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
	--KernelManager.transport_encryption=auto --log-level=WARN
STRIP := $(BIN)/nbstripout --keep-output --keep-count --extra-keys \
	"metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.widgets metadata.language_info.version"

UV ?= $(BIN)/uv
COMPILE = $(UV) pip compile -q --no-annotate --custom-compile-command "make lock" --generate-hashes \
	--python-version 3.11.17 --python-platform x86_64-manylinux_2_28 -c constraints.txt

export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help demo test check lab retrain notebooks bench chaos interrupt soak lock hashes fuzz audit sbom up down compose-test clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { echo "This project needs Python 3.11, 3.12 or 3.13, found" \
	  "$$($(PYTHON) --version 2>&1 || true); install one, or say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version), once; it takes a few minutes and says when it is done" >&2
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "  1 of 2: PyTorch" >&2
	@$(BIN)/python $(PIP) torch==2.13.0
	@echo "  2 of 2: the project, Jupyter and the tools" >&2
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[all]'
	@touch $@
	@echo "$(VENV) is ready" >&2

$(AUDIT): $(READY)
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[audit]'
	@touch $@

demo: $(READY)  ## train on the sample, start every service, stream trips, show alerts; ARGS="--seconds 20"
	@exec $(BIN)/fraudlib demo $(ARGS)

test: check  ## checks, tests, and the notebooks against their stored outputs; ARGS="-k worker", JOBS=1
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)
	$(if $(NOTEBOOKS),$(ALONE) $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 120 $(NOTEBOOKS))

check: $(READY)  ## style, types and the walls between rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

lab: $(READY)  ## open the notebooks in JupyterLab
	@exec $(BIN)/jupyter-lab $(firstword $(wildcard notebooks/00_*.ipynb) $(NOTEBOOKS)) $(ARGS)

retrain: $(READY)  ## run notebooks 01 to 04 and promote what passes; ARGS="--params pipelines/params/real_green.yaml"
	@exec $(BIN)/python -m pipelines retrain $(ARGS)

notebooks: $(READY)  ## run the notebooks on the sample in place and keep their outputs
	$(EXECUTE) $(NOTEBOOKS)
	$(STRIP) $(NOTEBOOKS)

bench: $(READY)  ## measure on this machine: throughput, latency, API, dead letters, scoring; writes docs/bench.json
	@exec $(BIN)/python -m bench $(ARGS)

chaos: $(READY)  ## kill, pause and starve the services under load, and check that nothing is lost or doubled
	@exec $(BIN)/python -m bench.chaos --out docs/bench.json $(ARGS)

interrupt: $(READY)  ## kill a retraining 20 times and its writer 40 times, and check that no half bundle is left
	RETRAIN_KILLS=20 $(BIN)/python -m pytest tests/test_interruptions.py

soak: $(READY)  ## half an hour of steady load with restarts and reloads; ARGS="--minutes 5"; writes docs/soak.json
	@exec $(BIN)/python -m bench.soak --out docs/soak.json $(ARGS)

up:  ## start the stack in Docker, wait until it is healthy, print addresses and passwords
	@COMPOSE="$(COMPOSE)" docker/up.sh $(ARGS)

down:  ## stop the stack in Docker and keep its data; ARGS=-v removes the data too
	@$(COMPOSE) --profile demo down --remove-orphans $(ARGS)

compose-test: $(READY)  ## run the stack in Docker under a name of its own, break it, and take it away; 10 minutes
	COMPOSE_TEST="$(COMPOSE)" $(BIN)/python -m pytest tests/integration/test_compose.py

lock: pyproject.toml  ## take the newest releases that pyproject.toml allows; hashes for the images into docker/
	@rm -rf $(VENV)-lock
	@$(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python $(PIP) torch==2.13.0
	@$(VENV)-lock/bin/python $(PIP) -e '.[all,audit]'
	@# A build's local version (+cpu, +cu130) is this machine's business, and so is where a package lies on its disk.
	@$(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed -E 's/\+[A-Za-z0-9.]+$$//' | grep -E '^[^ ]+==' > constraints.txt
	@$(MAKE) -s hashes UV=$(VENV)-lock/bin/uv
	@rm -rf $(VENV)-lock
	@echo "constraints.txt: $$(wc -l < constraints.txt) releases; run make test before you commit it" >&2

# What pip checks when it builds the images: releases of constraints.txt with the hashes of their files. PyTorch stands
# apart, as its builds are other files: for the CPU alone, and for NVIDIA with the libraries that it brings.
hashes:
	@cuda=$$($(COMPILE) - <<< torch | sed -nE 's/^((nvidia|cuda|triton)[a-z0-9-]*)==.*/\1/p'); \
	skip=$$(printf ' --no-emit-package %s' torch $$cuda); \
	$(COMPILE) --extra serve $$skip -o docker/requirements-api.txt pyproject.toml; \
	$(COMPILE) --extra worker $$skip -o docker/requirements-worker.txt pyproject.toml; \
	$(COMPILE) --extra model --extra pipelines $$skip -o docker/requirements-pipelines.txt pyproject.toml; \
	$(COMPILE) -o docker/requirements-cuda.txt - <<< torch
	@$(COMPILE) -o docker/requirements-pip.txt - <<< pip==26.3
	@$(COMPILE) -o docker/requirements-wheel.txt - <<< 'setuptools>=77'
	@$(COMPILE) --no-deps --torch-backend cpu -o docker/requirements-cpu.txt - <<< torch

fuzz: $(AUDIT)  ## generated requests, messages, files and bundles, many more than in the tests; 10 to 30 minutes
	$(BIN)/python -m pytest tests/security -m fuzz -s $(ARGS)
	$(BIN)/python -m pytest tests/security/test_messages.py --hypothesis-profile fuzz

audit: $(AUDIT)  ## look the images' packages up among known vulnerabilities; asks a public database
	@$(BIN)/python docker/audit.py $(ARGS)

sbom: $(AUDIT)  ## write what each image is made of to dist/sbom-*.json (CycloneDX)
	@mkdir -p dist
	@for image in api worker pipelines; do \
	  cat docker/requirements-$$image.txt $$([ $$image = api ] || echo docker/requirements-cpu.txt) | \
	  $(BIN)/cyclonedx-py requirements --output-reproducible -o dist/sbom-$$image.json -; done
	@ls dist/sbom-*.json

clean:  ## remove the environment, runs and caches
	rm -rf $(VENV) runs dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
