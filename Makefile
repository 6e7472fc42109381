# Everything runs in a virtual environment of this folder, made on first use and kept while pyproject.toml and
# constraints.txt stay as they are. Needs Python 3.11 or newer: `make PYTHON=python3.12 ...` chooses one.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := pyproject.toml constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready-study  ## train on the embedded data, with privacy and without
	$(BIN)/hushgrad demo

test: $(VENV)/.ready-dev  ## run the test suite
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.ready-dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-dev  ## measure step time and memory against the ordinary step and against Opacus
	$(BIN)/python -m benchmarks --write-readme

docs: $(VENV)/.ready-docs  ## build the pages under docs/_build/html
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build/html

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) docs/_build build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hushgrad needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-%: $(REQUIREMENTS) | $(VENV)/bin/python
	$(INSTALL) -e '.[$*]'
	@touch $@
