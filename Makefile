# Two commands from a fresh clone: `make demo` runs the main job, `make test` runs every check.
# Both make the environment first; PYTHON and VENV may be overridden.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# A second environment exports graphs with transformers 5, which optimum-onnx excludes from the first.
VENV5 ?= .venv5
# A third one serves models: a Triton server, and no gatenorm.
VENV_TRITON ?= .venv-triton
PYTEST := GATENORM_TRITON_ENV=$(abspath $(VENV_TRITON)) $(BIN)/python -m pytest
PYTHON5 := GATENORM_TRANSFORMERS5_PYTHON=$(abspath $(VENV5))/bin/python

.PHONY: demo test wide lint docs matrix triton clean

demo: $(VENV)/.demo
	$(BIN)/gatenorm run smollm2 --drop 4 --out out

# Two processes of one thread each: on busy cores, two threads wait for each other most of the time.
test:
	$(MAKE) -j2 triton lint
	OMP_NUM_THREADS=1 $(PYTEST) -m "not wide" -n 2 --dist loadfile --no-loadscope-reorder

# What `make test` leaves out, for minutes saved: graphs of the second environment, and the slowest families.
wide: $(VENV)/.dev $(VENV5)/.graphs5
	OMP_NUM_THREADS=1 $(PYTHON5) $(PYTEST) -m wide

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site; open site/index.html.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Every family with every exporter, and the documentation's table of them; takes hours on two cores.
matrix: $(VENV)/.dev $(VENV5)/.graphs5
	$(PYTHON5) $(BIN)/python -m benchmarks.matrix \
		--json benchmarks/results/matrix.json --markdown

# torch comes first: asked for by another package, pip may prefer a build with gigabytes of CUDA libraries.
$(VENV)/.torch $(VENV5)/.torch: %/.torch:
	$(PYTHON) -m venv $*
	$*/bin/pip install --quiet torch==2.13.0
	touch $@

$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(VENV)/.torch
	$(BIN)/pip install --quiet -e ".[$*]"
	touch $@

# Behind the first one, since both of them build gatenorm in this folder.
$(VENV5)/.graphs5: pyproject.toml | $(VENV5)/.torch $(VENV)/.dev
	$(VENV5)/bin/pip install --quiet -e ".[graphs5]"
	touch $@

# The server that tests and benchmarks.triton start.
triton: $(VENV_TRITON)/.triton-server
$(VENV_TRITON)/.triton-server: pyproject.toml
	$(PYTHON) -m venv $(VENV_TRITON)
	$(VENV_TRITON)/bin/pip install --quiet "pip>=25.1"
	$(VENV_TRITON)/bin/pip install --quiet --group triton-server
	touch $@

clean:
	rm -rf $(VENV) $(VENV5) $(VENV_TRITON) out site
