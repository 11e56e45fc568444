# Each target makes .venv when it is missing: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
# as published: the last digits of results follow from the number of threads
export OMP_NUM_THREADS ?= 2

.PHONY: demo test check stub bench slow clean

demo: .venv/.installed
	$(BIN)/diffuserec demo --out demo

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

slow: .venv/.installed
	$(BIN)/python -m pytest -m slow --timeout=0

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# the public names with typed settings, after a change to either
stub: .venv/.installed
	$(BIN)/python tools/make_stub.py

# LOG: a file of one line a user ("user item item …"), such as Amazon Beauty's 5-core
bench: .venv/.installed
	$(BIN)/python benchmarks/run_all.py $(LOG)

.venv/.installed: pyproject.toml constraints.txt examples/package/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e examples/package
	touch $@

clean:
	rm -rf .venv demo dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
