# Everything a newcomer needs: `make demo`, `make test`. VENV may point elsewhere (CI keeps one for each lock file).
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: install demo test test-slow lint format deps golden ui lock clean
INSTALLED := $(VENV)/.installed

install: $(INSTALLED)
$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

demo: install
	@start=$$(date +%s); $(BIN)/dvc repro && echo "the pipeline took $$(( $$(date +%s) - start )) s"
	@$(BIN)/python -m vtp results

# Two processes of one thread each, and so are all that they start: with two each they would wait for one another.
test test-slow: export OMP_NUM_THREADS := 1

test: install
	$(BIN)/python -m pytest -n 2 -m "not slow"

# A file's tests share a clone, so they stay together, in the order that tests/conftest.py gives them.
test-slow: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Write the code dependencies of every stage into dvc.yaml.
deps: install
	$(BIN)/python -m vtp.provenance

# Losses of 20 steps of each training, against the stored ones; `make golden UPDATE=--update` stores new ones.
golden: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.golden $(UPDATE)

ui: install
	$(BIN)/python -m vtp.tracking ui

# Resolve pyproject.toml into exact pins for every supported platform.
lock:
	$(PYTHON) -m uv pip compile --universal --python-version 3.11 --no-header --no-annotate --extra dev pyproject.toml -c constraints.txt -o requirements.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
