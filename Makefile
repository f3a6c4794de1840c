# `make` lists the targets. Nothing here needs root, and nothing leaves this directory.
SHELL := /bin/bash
PYTHON ?= python3
# ROS 2, .venv and the package; the same line serves a person at a terminal.
ROS := source install/setup.bash &&

.DEFAULT_GOAL := help
.PHONY: help setup setup-training demo test bench format shell clean

help:            ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup:           ## prepare ROS 2, Python packages and the workspace (ROS_WHEELS=kilted, PYTHON=python3.12)
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) is missing. Install with:"; \
	  echo "    sudo apt-get install -y python3 python3-venv python3-dev gcc g++ cmake"; exit 1; } >&2
	@$(PYTHON) requirements/setup_workspace.py

setup-training:  ## the same, and PyTorch and what model_tools needs (about 6 GB)
	@$(MAKE) --no-print-directory setup
	@$(PYTHON) requirements/setup_workspace.py --training
