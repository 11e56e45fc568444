# Each target makes .venv when it is missing: `make demo` and `make test` work on a fresh clone.
# Another Python has an environment of its own: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
# as published: the last digits of results follow from the number of threads
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-lowest check docs notebooks audit stub bench bench-gpu slow clean

demo: $(VENV)/.installed
	$(BIN)/diffuserec demo --out demo

# a file stays in one process, so that what its tests share is made once
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 PYTEST_DEBUG_TEMPROOT=$(wildcard /dev/shm) $(BIN)/python -m pytest -n 2 --dist loadfile

# the suite at the lowest versions that pyproject.toml allows; torch's is a build for CUDA of 4 GB
test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow --timeout=0

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(MAKE) --no-print-directory docs

# the site, into site/: notebooks are run, a warning is an error, the network is not used
docs: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -j 2 -b html docs site

# the notebooks with what they print, as they are kept here
notebooks: $(VENV)/.installed
	for file in docs/notebooks/*.ipynb; do $(BIN)/jupyter-execute --inplace $$file; done

# known faults of the versions that are installed; asks the network
audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(CONSTRAINTS)

# the public names with typed settings, after a change to either
stub: $(VENV)/.installed
	$(BIN)/python tools/make_stub.py

# LOG: a file of one line a user ("user item item …"), such as Amazon Beauty's 5-core
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run_all.py $(LOG)

# at most eight minutes of one GPU; where torch sees it
bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py --json docs/lab/results/gpu.json
	$(BIN)/python benchmarks/tables.py

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) examples/package/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e '.[dev]' -e examples/package
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest demo site docs/generated jupyter_execute dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
