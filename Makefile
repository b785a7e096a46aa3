# make demo: from a fresh clone to a scored few-step student.   make test: the tests.   make lint: formatting, rules, types, layers.
# make test-cluster: the tests on a real Slurm, which it starts on this machine (as root on Debian).
# make bench: how close each stage comes to what its hardware allows, in one table.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: venv test test-unit test-workflow test-cluster demo bench lint style types

venv: $(INSTALLED)

# Tests' tools come along: one environment for everything, so that what was tested is what runs.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

test: test-unit test-workflow

test-unit: venv
	$(BIN)/python -m pytest tests --ignore tests/workflow --ignore tests/logger

test-workflow: venv
	$(BIN)/python -m pytest tests/workflow tests/logger

test-cluster: venv
	$(BIN)/python -m pytest -m cluster tests/cluster

demo: venv
	$(BIN)/snakemake all
	@echo
	@cat results/digits/fid_table.md
	@echo
	@echo "Pictures: results/digits/figures/*.png   Table: results/digits/fid_table.csv"
	@echo "Runs: $(BIN)/mlflow ui   then open the address it prints"

bench: venv
	$(BIN)/python benchmarks/run.py

lint: venv style types

style: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/lint-imports

types: venv
	$(BIN)/mypy
