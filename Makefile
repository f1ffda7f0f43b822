# Commands for users, developers and CI. `make help` lists them.

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
RUN := $(VENV)/bin/python
export RNN_SEARCH_STORAGE ?= sqlite:///studies/studies.db
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
# Options of the demo's search and its refinement, as in: make demo OVERRIDES='--set training.steps=200'
OVERRIDES ?=
# Passed to the shell verbatim: make does not expand a dollar sign.
override OVERRIDES := $(value OVERRIDES)
TESTS ?= tests
PORT ?= 8080

.PHONY: help install demo test test-all test-lowest golden mutants chaos check docs reference format bench dashboard clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## create .venv and install into it

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV), which takes a minute or more"
	@while sleep 4 >/dev/null 2>&1; kill -0 $$$$ 2>/dev/null; do echo "still installing"; done & \
	$(PYTHON) -m venv $(VENV) && \
	$(RUN) -m pip install --quiet --upgrade pip && \
	$(RUN) -m pip install --quiet --editable '.[dev,postgres]'; \
	status=$$?; kill $$!; exit $$status
	@touch $@

demo: install ## search, refine and report on a small study: one to three minutes on two cores
	$(RUN) run_search.py quick --workers $(WORKERS) $(OVERRIDES)
	$(RUN) refine.py quick-refined --workers $(WORKERS)
	$(VENV)/bin/rnn-search report quick quick-refined

# One more process than cores: fault tests spend much of their time waiting for timeouts. Those that
# are extended wait for clusters as well.
# Without bytecode files, each process would rewrite the assertions of all test files again.
PYTEST = PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest --dist loadfile --no-loadscope-reorder

test: install ## run the tests: some minutes on two cores
	$(PYTEST) -n $$(( $(WORKERS) + 1 )) -m "not extended" $(TESTS)

test-all: test ## run the tests, then the long ones: crowds, chaos, the documents' commands, the browser
	$(PYTEST) -n $$(( $(WORKERS) + 2 )) -m extended $(TESTS)

# Python 3.11 has wheels of all of these versions.
test-lowest: install ## run the tests with the lowest versions that pyproject.toml allows
	rm -rf $(LOWEST)
	$(VENV)/bin/uv venv --quiet --python 3.11 $(LOWEST)
	VIRTUAL_ENV=$(LOWEST) $(VENV)/bin/uv pip install --quiet --resolution lowest-direct --editable '.[dev,postgres]'
	@touch $(LOWEST)/.installed
	$(MAKE) test VENV=$(LOWEST)

golden: install ## write the golden results anew and print what changed: make golden GOLDEN="NAME …"
	$(RUN) tests/golden/golden.py $(GOLDEN)

mutants: install ## break the code in each of the listed ways and see the tests fail: some minutes
	$(RUN) tests/mutants/mutants.py $(MUTANTS)

chaos: install ## kill, freeze and stop eight workers two hundred times, on each database and with pruning
	RNN_SEARCH_CHAOS_DISTURBANCES=200 RNN_SEARCH_CHAOS_WORKERS=8 RNN_SEARCH_CHAOS_TRIALS=144 \
	RNN_SEARCH_CHAOS_STEPS=2000 $(RUN) -m pytest -s tests/faults/test_chaos.py

check: install ## lint, format, types and layers
	$(VENV)/bin/ruff check --no-cache .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

# With --quiet, MkDocs would not count the warnings that --strict makes errors.
docs: install ## build the documentation site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

reference: install ## write the tables of docs/reference that follow from the code
	$(RUN) -m docs.generator.reference

format: install ## fix lint errors and format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: install ## list the benchmarks; BENCH="training-step scale" runs some
	$(RUN) -m benchmarks $(BENCH)

dashboard: install ## serve optuna-dashboard for the default storage on the loopback address
	$(VENV)/bin/rnn-search dashboard --port $(PORT)

clean: ## remove environments and caches, but no study and no report
	rm -rf $(VENV) $(LOWEST) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
