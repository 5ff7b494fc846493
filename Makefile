# make demo: a finished comparison of two language models in saelign-demo/, from a fresh checkout.
# make test: format, lint, types, imports and tests; the same command that CI runs.
# make bench: docs/benchmarks and the table in docs/performance.md; leave the machine alone for an hour.
# make page: the script and style of the report, from src/saelign/report/page/src (needs Node); commit what it writes.

PYTHON ?= python3
BIN := .venv/bin
OUT ?= saelign-demo

.PHONY: demo setup test bench page clean

demo: setup
	$(BIN)/saelign demo --out $(OUT)

setup: .venv/.installed

test: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 40

bench: .venv/.installed-dev
	$(BIN)/python -m benchmarks --out docs/benchmarks

page:
	cd src/saelign/report/page && npm ci && npm run build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist saelign-demo src/*.egg-info
