# Two commands from a fresh clone: `make demo` runs the main job, `make test` runs every check.
# Both make the environment first; PYTHON and VENV may be overridden.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# A second environment exports graphs with transformers 5, which optimum-onnx excludes from the first.
VENV5 ?= .venv5

.PHONY: demo test lint matrix clean

demo: $(VENV)/.demo
	$(BIN)/gatenorm run smollm2 --drop 4 --out out

test: $(VENV)/.dev $(VENV5)/.graphs5 lint
	GATENORM_TRANSFORMERS5_PYTHON=$(abspath $(VENV5))/bin/python $(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every family with every exporter, and the README's table of them; takes hours on two cores.
matrix: $(VENV)/.dev $(VENV5)/.graphs5
	GATENORM_TRANSFORMERS5_PYTHON=$(abspath $(VENV5))/bin/python $(BIN)/python -m benchmarks.matrix \
		--json benchmarks/results/matrix.json --markdown

# torch comes first: asked for by another package, pip may prefer a build with gigabytes of CUDA libraries.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e ".[$*]"
	touch $@

$(VENV5)/.graphs5: pyproject.toml
	$(PYTHON) -m venv $(VENV5)
	$(VENV5)/bin/pip install --quiet torch==2.13.0
	$(VENV5)/bin/pip install --quiet -e ".[graphs5]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV5) out
