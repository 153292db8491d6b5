# Two commands from a fresh clone: `make demo` runs the main job, `make test` runs every check.
# Both make the environment first; PYTHON and VENV may be overridden.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/gatenorm run smollm2 --drop 4 --out out

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first: asked for by another package, pip may prefer a build with gigabytes of CUDA libraries.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) out
