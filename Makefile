# Two commands: `make analyze` runs the main job, `make test` runs the tests; both set up what they need first.
#
#   make analyze ARGS="--pdf paper.pdf --device h200"     any option of `dsocr-graph analyze`
#   make test ARGS="-k units"                             any option of pytest
#   make PYTHON=python3.12 test                           another interpreter (3.11 or newer)

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

RUN := $(VENV)/bin/python
# The path is part of the stamp: an editable install points at this directory, so a moved checkout sets up again.
HERE := $(shell printf '%s' "$(CURDIR)" | cksum | cut -d ' ' -f 1)
CREATED := $(VENV)/.created
READY := $(VENV)/.ready-$(HERE)
PIP := $(RUN) -m pip --disable-pip-version-check --no-input install -qq --constraint constraints-dev.txt

# The user's shell, locale and Python settings must not reach the recipes.
SHELL := /bin/sh
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PIP_USER PIP_TARGET PIP_PREFIX
export PYTHONUTF8 := 1
export PYTHONNOUSERSITE := 1
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup analyze test lint format types golden docs accuracy bench clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
	@echo
	@echo 'Targets: setup analyze test lint format types golden docs accuracy bench clean'

$(CREATED): constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there); Python 3.11 or newer is needed." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; torch is the large part) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@# torch first and alone: pip then has no reason to look at another build of it
	@$(PIP) "$$(sed -n '/^torch==/p' constraints-dev.txt)"
	@touch $@

$(READY): pyproject.toml $(CREATED)
	@$(PIP) --editable '.[dev]'
	@rm -f $(VENV)/.ready-*
	@touch $@

setup: $(READY)

analyze: $(READY)
	@$(RUN) -m dsocr_graph.analyze $(ARGS)

# A file stays in one process, so that what its tests share is made once.
test: $(READY)
	@$(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY)
	@$(RUN) -m ruff check --quiet .

format: $(READY)
	@$(RUN) -m ruff check --quiet --fix --select I .
	@$(RUN) -m ruff format --quiet .

types: $(READY)
	@$(RUN) -m pyright --pythonpath $(RUN) $(ARGS)

# Compares emitted artefacts with the ones kept; `make golden ARGS=--update-golden` writes them anew.
golden: $(READY)
	@$(RUN) -m pytest -q tests/golden $(ARGS)

# Every example in docstrings and Markdown runs.
docs: $(READY)
	@$(RUN) -m pytest -q -n 2 src extern $(wildcard *.md docs) $(ARGS)

# The error tables, from the calibrations and measurements that are kept; collect.py makes these anew.
accuracy: $(READY)
	@$(RUN) benchmarks/accuracy/table.py $(ARGS)

bench: $(READY)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(RUN) "$$script" $(ARGS); done

clean:
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	@find src extern tests -name __pycache__ -type d -prune -exec rm -rf {} +
