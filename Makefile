# Everything runs in a virtual environment of this folder, made on first use and kept while pyproject.toml and the lock stay as
# they are. Needs Python 3.11 or newer: `make PYTHON=python3.12 ...` chooses one. The lock, constraints.txt, covers the minors
# named in LOCKED; another one gets a line that says so, and the newest versions that pyproject.toml allows.

PYTHON ?= python3
LOCKED := 3.11
LOCK := constraints.txt
# What `make test-latest` takes of torch: the locked version, because others bring gigabytes on many machines. `TORCH=torch`
# takes the newest.
TORCH ?= $(shell sed -n '/^torch==/p' $(LOCK))
# More for pytest: PYTEST_ARGS=tests/noise, or PYTEST_ARGS='-k lstm --durations=20'.
PYTEST_ARGS ?=
FASTDP ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LATEST := .venv-latest/bin
PIP := -m pip install --quiet --disable-pip-version-check
SUPPORTED = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "hushgrad needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }

.PHONY: demo test test-slow test-latest lint bench bench-readme scoreboard docs lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready-study  ## train on the embedded data, with privacy and without
	$(BIN)/hushgrad demo

test: $(VENV)/.ready-dev  ## run the test suite, but for what takes long
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

test-slow: $(VENV)/.ready-dev  ## run the tests that take long, and no others
	$(BIN)/python -m pytest -n auto -m slow --slow $(PYTEST_ARGS)

test-latest:  ## run the tests that touch other packages against the newest of everything but torch
	@$(SUPPORTED)
	$(PYTHON) -m venv --clear .venv-latest
	$(LATEST)/python $(PIP) -e '.[dev]' '$(TORCH)'
	@echo "These versions, each beside the locked one where they differ:"
	@$(LATEST)/python tools/lock.py --compare
	$(LATEST)/python -m pytest -n auto -m packages $(PYTEST_ARGS)
	$(LATEST)/python -m pytest -m slow --slow tests/zoo/walk  # all architectures: a few processes of its own

lint: $(VENV)/.ready-dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# FASTDP names a folder with fastDP's source, which isn't in the registry; BENCH_ARGS passes more: BENCH_ARGS='--minutes 30'.
bench: $(VENV)/.ready-dev  ## compare private steps with peers on this machine, in ten minutes: benchmarks-out/index.html
	$(BIN)/python -m benchmarks.page $(if $(FASTDP),--fastdp '$(FASTDP)') $(BENCH_ARGS)

bench-readme: $(VENV)/.ready-dev  ## measure all, memory too, and write the figures into README.md and docs (maintainers)
	$(BIN)/python -m benchmarks --write-readme

scoreboard: $(VENV)/.ready-dev  ## run programs that leak in silence elsewhere: refused, exact, told, or SILENT (an error)
	$(BIN)/python tests/zoo/silent/scoreboard.py

docs: $(VENV)/.ready-docs  ## build the pages under docs/_build/html
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build/html

lock:  ## resolve the newest versions that work together, and write them to the lock
	$(PYTHON) tools/lock.py --write $(LOCKED)

clean:  ## remove the environments and everything that was built
	rm -rf $(VENV) .venv-latest .venv-lock docs/_build build dist runs benchmarks-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(SUPPORTED)
	$(PYTHON) -m venv $(VENV)

# What builds the project is locked, too: pip would otherwise resolve it anew, in an environment of its own.
$(VENV)/.ready-%: pyproject.toml $(LOCK) | $(VENV)/bin/python
	@minor=$$($(BIN)/python -c 'import sys; print("{}.{}".format(*sys.version_info))'); \
	case " $(LOCKED) " in \
	*" $$minor "*) lock="-c $(LOCK)" ;; \
	*) lock=; echo "$(LOCK) covers Python $(LOCKED), not $$minor: taking the newest versions that pyproject.toml allows." ;; \
	esac; \
	set -x; \
	$(BIN)/python $(PIP) $$lock hatchling editables && \
	$(BIN)/python $(PIP) $$lock --no-build-isolation -e '.[$*]'
	@touch $@
