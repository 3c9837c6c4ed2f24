# Two commands for a machine that has Python >= 3.11, make and a package index.
#   make demo   installs the core into .venv and refines real text, in under a minute after that
#   make test   installs what the tests need and runs all of them
# And one that needs torch, and a few minutes after that:
#   make demo-ilr   trains small models from nothing, and refines what the weaker one demonstrates
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
# Byte code is made when a module is first imported, which most of what is installed never is.
PIP = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check

.PHONY: demo demo-ilr test lint clean

demo: $(VENV)/core
	rm -rf demo && mkdir demo
	$(BIN)/python examples/docstrings.py demo/docstrings.csv --gold 100
	$(BIN)/whet refine demo/docstrings.csv --text text --pseudo rule --gold gold --out demo/run
	$(BIN)/python examples/check_demo.py demo/run/refined.parquet

demo-ilr: $(VENV)/train
	rm -rf demo-ilr
	$(BIN)/python examples/scratch_models.py examples/ilr_demo.yaml
	$(BIN)/whet ilr examples/ilr_demo.yaml

# A thread for each worker: four threads on two cores wait for one another.
test: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

$(VENV)/core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# torch is pinned to a release with a CPU build; only extras need it.
$(VENV)/train: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[train]'
	touch $@ $(VENV)/core

$(VENV)/dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/train $(VENV)/core

lint: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo demo-ilr build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
