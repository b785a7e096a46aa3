# make demo: from a fresh clone to a scored few-step student.   make test: the tests.   make lint: formatting and rules.
# make test-cluster: the tests on a real Slurm, which it starts on this machine (as root on Debian).
# make bench: how close each stage comes to what its hardware allows, in one table.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: venv test test-cluster demo bench lint

venv: $(INSTALLED)

# Tests' tools come along: one environment for everything, so that what was tested is what runs.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

test: venv
	$(BIN)/python -m pytest

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

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
