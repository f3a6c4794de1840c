# `make` lists the targets. Nothing here needs root, and nothing outside this directory changes.
SHELL := /bin/bash
# The Python that .venv was made from, once there is one.
PYTHON ?= $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)
# ROS 2, .venv and the package. The same line serves a person at a terminal.
ENVIRONMENT := source install/setup.bash

.DEFAULT_GOAL := help
.PHONY: help python setup setup-training demo test bench soak format shell clean

help:            ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

python:
	@command -v $(PYTHON) >/dev/null || { echo 'setup: $(PYTHON) is missing. Install with:' >&2; \
	  echo '    sudo apt-get install -y python3 python3-venv python3-dev gcc g++ cmake' >&2; exit 1; }

setup: python    ## ROS 2, Python packages, the built workspace (ROS_WHEELS=kilted, PYTHON=python3.12)
	@$(PYTHON) requirements/setup_workspace.py

setup-training: python  ## the same, and PyTorch and what model_tools needs (about 6 GB)
	@$(PYTHON) requirements/setup_workspace.py --training

demo: setup      ## track the demo clip into OUT=out/demo (SOURCE= MODEL= BACKEND= EVERY_N= PORT=)
	@$(ENVIRONMENT) && exec install/edge_perception/lib/edge_perception/demo \
	  --out '$(or $(OUT),out/demo)' $(if $(SOURCE),--source '$(SOURCE)') \
	  $(if $(MODEL),--model '$(MODEL)') $(if $(BACKEND),--backend '$(BACKEND)') \
	  $(if $(EVERY_N),--every-n '$(EVERY_N)') $(if $(PORT),--port '$(PORT)')

test: setup-training  ## lint, types and all tests (ARGS= for pytest)
	@$(ENVIRONMENT) && ruff check && ruff format --check && mypy && pytest test $(ARGS)

bench: setup-training  ## measure (ARGS= for pytest)
	@$(ENVIRONMENT) && pytest test/benchmarks --benchmark-only $(ARGS)

soak: setup-training  ## run for MINUTES=30 and see whether anything grows, into OUT=out/soak (ARGS=)
	@$(ENVIRONMENT) && exec python model_tools/soak.py --minutes '$(or $(MINUTES),30)' \
	  --out '$(or $(OUT),out/soak)' $(ARGS)

format: setup    ## format the sources and apply safe fixes
	@$(ENVIRONMENT) && ruff check --fix && ruff format

shell: setup     ## a shell in which python, pytest, colcon and the nodes are at hand
	@$(ENVIRONMENT) && exec "$${SHELL:-/bin/bash}"

clean:           ## remove what was built and written; .venv and models stay
	rm -rf build install log out .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
