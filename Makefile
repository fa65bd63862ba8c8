# dkt-ray: `make` lists the targets. The first one you call creates .venv; nothing needs root.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench reliability clean

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Named with == in every pip call: pip then takes the wheel that PIP_FIND_LINKS offers (a CPU build, say), else the registry's.
TORCH := $(shell grep '^torch==' constraints.txt)

# Ray on this machine only: no token, no usage report, every port on 127.0.0.1. Its workers run at our own priority, not
# 15 levels below it, where they starve beside other work.
LOCAL_RAY := RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 \
             RAY_worker_niceness=0 GRADIO_ANALYTICS_ENABLED=False
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(INSTALLED)  ## Create .venv and install everything (done by the other targets too)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dkt-ray needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot create $(VENV); on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt "$(TORCH)" -e '.[dev]'
	@touch $@

demo: setup  ## From simulated answers to a served ensemble with a web page; Ctrl-C ends it
	$(LOCAL_RAY) $(BIN)/dkt demo $(ARGS)

test: setup  ## Every test that needs only Python packages, in two processes; others say what is missing
	$(LOCAL_RAY) $(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

lint: setup  ## ruff, mypy, import-linter, size report
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/size_report.py

bench: setup  ## The benchmarks, one JSON line each
	@for script in $$(grep -l __main__ benchmarks/*.py); do echo "== $$script"; $(ONE_THREAD) $(BIN)/python $$script || exit 1; done

reliability: setup  ## The long runs: a sweep killed ten times (SWEEP_ARGS); the service under kills, rollouts, overload (ARGS); exports killed (EXPORT_ARGS); requests of every kind (FUZZ_ARGS)
	$(LOCAL_RAY) $(ONE_THREAD) PYTHONPATH=. $(BIN)/python tests/reliability/kill_sweep.py $(SWEEP_ARGS)
	$(LOCAL_RAY) $(ONE_THREAD) PYTHONPATH=. $(BIN)/python tests/reliability/serving.py $(ARGS)
	$(LOCAL_RAY) $(ONE_THREAD) PYTHONPATH=. $(BIN)/python tests/reliability/export_kill.py $(EXPORT_ARGS)
	$(LOCAL_RAY) $(ONE_THREAD) PYTHONPATH=. $(BIN)/python tests/reliability/fuzz.py $(FUZZ_ARGS)

clean:  ## Remove .venv, caches and build outputs; data/ (stores, logs) stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
