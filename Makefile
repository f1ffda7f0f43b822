# The scripts for a user, a developer and the checks alike. `make help` lists them.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export RNN_SEARCH_STORAGE ?= sqlite:///studies/studies.db
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
# More words for run_search.py and refine.py, as in: make demo OVERRIDES='--set training.steps=200'
OVERRIDES ?=
TESTS ?= tests
PORT ?= 8080

.PHONY: help install demo test test-all chaos check format bench dashboard clean

help: ## list what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## make .venv and install into it

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[dev,postgres]'
	@touch $@

demo: install ## search, refine and report on a small study: about two minutes on two cores
	$(RUN) run_search.py quick --workers $(WORKERS) $(OVERRIDES)
	$(RUN) refine.py quick-refined --workers $(WORKERS) $(OVERRIDES)
	@echo "The report of both studies:"
	@$(RUN) -m reports quick quick-refined

# One more process than there are cores: tests of faults wait for other processes part of the time.
PYTEST = $(RUN) -m pytest -n $$(( $(WORKERS) + 1 )) --dist loadfile --no-loadscope-reorder

test: install ## run the tests: some minutes on two cores
	$(PYTEST) -m "not extended" $(TESTS)

test-all: test ## run the tests, and then the long ones: crowds, chaos, the README, the browser
	$(PYTEST) -m extended $(TESTS)

chaos: install ## disturb eight workers two hundred times, on each database and with pruning
	RNN_SEARCH_CHAOS_DISTURBANCES=200 RNN_SEARCH_CHAOS_WORKERS=8 RNN_SEARCH_CHAOS_TRIALS=144 \
	RNN_SEARCH_CHAOS_STEPS=2000 $(RUN) -m pytest -s tests/faults/test_chaos.py

check: install ## lint, format, types and layers
	$(VENV)/bin/ruff check --no-cache .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

format: install ## mend what can be mended
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: install ## measure, as ratios in one run: about an hour on two cores
	$(RUN) -m benchmarks

dashboard: install ## open optuna-dashboard on the default storage, on this machine alone
	$(RUN) -m reports.dashboard --port $(PORT)

clean: ## remove the environment and the caches, but no study and no report
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
