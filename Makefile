# Every target sets up what it needs in .venv on first use and takes seconds when nothing changed.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
PY := $(VENV)/bin/python
SOURCES := $(shell find csrc -type f) setup.py

# One process for each core, with one thread: that is faster than threads within a test.
WORKERS ?= $(shell nproc)
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses=$(WORKERS) --dist=worksteal

.PHONY: demo test test-slow test-all coverage mutations bench reproduce lint docs release gpu build clean
.DELETE_ON_ERROR:

demo: build
	$(PY) examples/demo.py --out out/demo

# Every module within four minutes on two cores; what takes longer or adds less is marked slow.
test: build
	HYPOTHESIS_PROFILE=fast $(PYTEST) -m "not slow"

# The rest, with all random programs. What tests compile is kept in out/tests.
test-slow: build
	$(PYTEST) -m "slow or hypothesis"

test-all: test test-slow

# Which lines `make test` runs, in Python and C++, in a copy built with counters: a quarter of an
# hour. Tests start processes in other folders too, hence the whole paths.
COPY := $(CURDIR)/out/coverage
COVERAGE := $(CURDIR)/$(PY) -m coverage
coverage: build
	rm -rf $(COPY)
	$(PY) -m tests.tools.tree $(COPY)
	cd $(COPY) && FASTNODE_CUDA=0 CFLAGS="--coverage -fprofile-update=atomic" LDFLAGS=--coverage \
	    $(CURDIR)/$(PY) setup.py -q build_ext --inplace
	cd $(COPY) && HYPOTHESIS_PROFILE=fast OMP_NUM_THREADS=1 $(COVERAGE) run \
	    --source=$(COPY)/fastnode --data-file=$(COPY)/.coverage \
	    -m pytest -q --timeout=900 --numprocesses=$(WORKERS) --dist=worksteal -m "not slow"
	cd $(COPY) && $(COVERAGE) combine -q && $(COVERAGE) json -q -o python.json
	cd $(COPY) && $(COVERAGE) report --skip-covered -m
	cd $(COPY) && $(CURDIR)/$(VENV)/bin/gcovr --filter csrc/ \
	    --merge-mode-functions=separate --merge-lines \
	    --gcov-ignore-parse-errors=suspicious_hits.warn_once_per_file \
	    --json-summary cpp.json --txt
	$(PY) -m bench.keep_coverage $(COPY)

# Whether tests notice twenty wrong lines, in a copy: a quarter of an hour.
mutations: build
	$(PY) -m tests.tools.mutations --out bench/results/cpu/mutations.jsonl

# Below a quarter of an hour with every rival; FULL=--full takes finer grids. Results are kept by
# `python -m bench.keep`.
bench: build
	mkdir -p out
	$(PY) -m pytest bench --timeout=900 --durations=15 --benchmark-json=out/bench.json $(FULL)

# The papers' tables into docs/reproduction.md, in hours: each row is kept, a broken run goes on.
# FULL=--full takes the papers' sizes, for a GPU; FASTNODE_DATA names the folder with the data.
reproduce: build
	$(PY) -m bench.reproduce $(FULL)

lint: build
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports
	$(VENV)/bin/clang-format --dry-run --Werror $(filter-out setup.py,$(SOURCES))

# Into out/site; a warning is an error. The sources are read, not imported.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

# Source distribution and wheel into out/release, checked; compiles twice.
release: $(VENV)/installed
	.ci/release $(PY) out/release

# For a machine with a GPU and its own torch, in minutes; raw results into OUT. CALL=second goes on
# from what the first left in the folder AGAIN.
CALL ?= first
gpu:
	OUT=$${OUT:-out/gpu} $(PYTHON) -m bench.gpu $(CALL) $(if $(AGAIN),--again $(AGAIN))

build: $(VENV)/built

# The exact torch comes first: otherwise pip may pick another build of it for a dependency.
$(VENV)/installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade "pip>=24"
	$(PY) -m pip install -q "$(TORCH)" "setuptools>=77" wheel ninja "pybind11>=2.13"
	FASTNODE_CUDA=0 $(PY) -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@ $(VENV)/just-built

# The installation above has built it already, in a folder that pip throws away. Built here, what has
# not changed is not compiled again.
$(VENV)/built: $(VENV)/installed $(SOURCES)
	test -e $(VENV)/just-built || FASTNODE_CUDA=0 $(PY) setup.py -q build_ext --inplace
	rm -f $(VENV)/just-built
	touch $@

clean:
	rm -rf build dist out *.egg-info fastnode/_C*.so $(VENV)
