# Needs GNU make, bash and Python 3.11 or newer with venv. PYTHON=python3.12 picks another interpreter,
# ARGS="-k name" goes to pytest or to the demo, WORKERS=4 is how many processes share the tests.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup kube kueue gitops demo test unit e2e faults generate verify bench-trainer bench-operator bench-retries bench-queue bench-hangs bench-idle bench-soak bench-goodput bench-flood bench-saves bench-devices images images-test cosign release advisories checkov requirements clean

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST = $(RUN) -m pytest --numprocesses $(WORKERS)
SOURCES := $(wildcard operator trainer-image charts tests benchmarks examples)
PINS := requirements/uv.txt requirements/dev.txt requirements/demo.txt
# Named after what it stands for, the pins and pyproject.toml down to the linters: while they stay, nothing is set up.
STAMP := $(VENV)/setup-$(shell (cat $(PINS) && sed '/^\[tool.ruff/,$$d' pyproject.toml) | sha256sum | cut -c1-16)

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install everything into .venv, pinned and hash-checked.

$(STAMP):
	@say() { printf 'setup: %3d s  %s\n' "$$SECONDS" "$$1"; }
	$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' ||
		{ echo 'setup: Python 3.11 or newer with venv is needed; PYTHON=... names one.'; exit 1; }
	rm -f $(VENV)/setup-*
	$(RUN) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
		{ say 'creating $(VENV)'; $(PYTHON) -m venv --clear $(VENV); }
	say 'installing uv'
	$(RUN) -m pip install --quiet --require-hashes --requirement requirements/uv.txt
	say 'installing the pinned packages: 3 GB to fetch the first time, then from the cache'
	$(VENV)/bin/uv pip sync --quiet --python $(RUN) --require-hashes requirements/dev.txt requirements/demo.txt
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --offline --no-deps --no-build-isolation --editable .
	say 'compiling what a training imports'
	env -u PYTHONDONTWRITEBYTECODE $(RUN) -W ignore -c \
		'import logging; logging.disable(); import kopf, kubernetes.aio, peft, transformers.trainer, transformers.models.llama.modeling_llama, torch._dynamo'
	touch $@
	say 'done'

kube: ## Build the pinned Kubernetes into the cache: minutes once, seconds after.
	@$(PYTHON) -m tests.cluster.kube

kueue: ## Build the pinned Kueue into the cache, for the tests of queues: minutes once. Without it they are skipped.
	@$(PYTHON) -m tests.kueue.build

gitops: ## Build the pinned Flux and Argo CD into the cache, for tests/gitops: a quarter of an hour once. Without them they are skipped.
	@$(PYTHON) -m tests.gitops.build

demo: setup ## Fine-tune a small model on a real Kubernetes, as a user would.
	@$(RUN) -m examples.demo $(ARGS)

test: setup kube ## Run every test.
	@$(PYTEST) $(ARGS)

unit: setup ## Run the tests that need no Kubernetes.
	@$(PYTEST) -m 'not cluster and not demo' $(ARGS)

e2e: setup kube ## Run the tests on real Kubernetes alone.
	@$(PYTEST) -m cluster $(ARGS)

faults: setup kube ## Play every fault plan against the operator, and report; ARGS="-k NAME" picks some.
	@$(RUN) -m tests.faults $(ARGS)

generate: setup ## Write what is generated: crds/, docs/api.md, and the chart's copies.
	@$(RUN) -m finetune_api.crd
	$(RUN) -m charts.dashboards
	$(RUN) -m tests.chart.generate

verify: setup ## Check generated files, lint, format, types, layers, and look for weaknesses and secrets.
	@$(RUN) -m finetune_api.crd --check
	$(RUN) -m charts.dashboards --check
	$(RUN) -m tests.chart.generate --check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy $(SOURCES)
	$(VENV)/bin/lint-imports --no-logo
	$(RUN) -m tests.security.scan

bench-trainer: setup ## Measure the trainer's tokens/s beside TRL's and transformers'.
	@$(RUN) -m benchmarks.trainer $(ARGS)

bench-operator: setup kube ## Measure writes a run, and the time from event to status.
	@$(RUN) -m benchmarks.operator

bench-retries bench-queue bench-hangs bench-idle bench-soak bench-goodput bench-flood: setup kube
	@$(RUN) -m benchmarks.$(@:bench-%=%) $(ARGS)

bench-saves bench-devices: setup
	@$(RUN) -m benchmarks.$(@:bench-%=%) $(ARGS)

bench-saves: ## Measure what a checkpoint costs the training.
bench-devices: ## Measure the throughput of two processes beside one.
bench-retries: ## Measure how soon a failed attempt is followed by the next.
bench-queue: ## Measure 15,000 queued runs; ARGS="--runs 1000" takes fewer.
bench-hangs: ## Look for hangs among 100 slow runs.
bench-idle: ## Measure what 1,000 idle runs cost in 10 minutes.
bench-soak: ## Measure what is left of 10,000 runs that have come and gone.
bench-goodput: ## Measure what is left of a run's time when its pod is killed once a minute.
bench-flood: ## Measure how long a run waits while another team submits 5,000.

images: setup ## Build both images with buildah: BASE=image@sha256:..., or BASE_TAR=file.
	@$(RUN) -m tests.images.build $(if $(BASE_TAR),--base-tar $(BASE_TAR),--base $(BASE)) $(if $(ARGS),-- $(ARGS))

images-test: setup kube ## Build both images and run them, the quickstart too: long; needs root, buildah, runc, mmdebstrap.
	@$(RUN) -m pytest tests/images/check.py -o faulthandler_timeout=0 $(ARGS)

cosign: ## Build the pinned cosign into the cache, and a registry for its tests: minutes once. Without them they are skipped.
	@$(PYTHON) -m tests.release.signing

release: setup ## Make a release of the commit in dist/release: KEY=cosign.key signs it, REGISTRY=... the images there too.
	@$(RUN) -m tests.release.build $(if $(KEY),--key $(KEY)) $(if $(REGISTRY),--registry $(REGISTRY))

advisories: setup ## Ask the package index for known weaknesses of what is pinned.
	@$(RUN) -m tests.release.advisories

checkov: setup ## Run checkov on chart and Dockerfiles.
	@$(RUN) -m tests.chart.checkov

requirements: setup ## Pin the dependencies again; ARGS=--upgrade takes newer ones.
	@compile() {
		$(VENV)/bin/uv pip compile --quiet --python-version 3.11 --python-platform linux \
			--generate-hashes --no-header --no-annotate $(ARGS) "$$@"
	}
	compile pyproject.toml --extra dev --output-file requirements/dev.txt
	compile pyproject.toml --extra operator --constraint requirements/dev.txt --output-file requirements/operator.txt
	compile pyproject.toml --extra trainer --constraint requirements/dev.txt --output-file requirements/trainer.txt
	compile --no-deps requirements/demo.in --output-file requirements/demo.txt
	compile requirements/uv.in --output-file requirements/uv.txt
	compile requirements/semgrep.in --output-file requirements/semgrep.txt
	compile --no-deps --constraint requirements/dev.txt requirements/bench.in --output-file requirements/bench.txt
	compile requirements/mlflow.in --output-file requirements/mlflow.txt
	compile requirements/pip-audit.in --output-file requirements/pip-audit.txt

clean: ## Remove .venv and what tools left; the caches outside the checkout stay.
	@rm -rf $(VENV) .demo dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
