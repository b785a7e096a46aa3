# make demo: from a fresh clone to a scored few-step student.   make lint: style, spelling, layers, types, documents.
# make test: the tests.   make test-unit test-workflow: those that take over ten seconds, or need a PostgreSQL or a
# browser, too.   make test-cluster: those on a real Slurm, which it starts on this machine (as root on Debian).
# make test-logger: the wheel of logger/ and its tests, in a fresh environment without mscd and PyTorch.
# make bench: how close each stage comes to what its hardware allows, in one table.   make site: the documents as a
# website, in site/.   make showcase: the pictures and numbers of README.md from the results of make demo.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: venv test test-unit test-workflow test-cluster test-logger demo showcase bench lint style types documents site

# To Snakemake the target of `snakemake --configfile FILE all` is another settings file, as its option takes all that
# follows. Nothing in a workflow can change that, so there is a file of that name, which sets nothing.
venv: $(INSTALLED)
	@test -e all || printf '%s\n' '# Makes `snakemake --configfile FILE all` work; the Makefile says why.' '{}' > all

# Tests' tools come along: one environment for everything, so that what was tested is what runs. Python compiles the
# modules that are used when they are: to compile all takes longer than the rest of the installation.
$(INSTALLED): pyproject.toml logger/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt \
		-e ./logger -e '.[test]'
	@touch $@

# As many processes as there are cores; a file's tests stay together, as they share what they make.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

test: venv
	$(PYTEST)

test-unit: venv
	$(PYTEST) -m "not cluster" tests --ignore tests/workflow

test-workflow: venv
	$(PYTEST) -m "not cluster" tests/workflow logger/tests

# Two processes, as this Slurm has two sites of two nodes.
test-cluster: venv
	$(BIN)/python -m pytest -n 2 --dist load --maxschedchunk 1 -m cluster tests/cluster

test-logger:
	PYTHON=$(PYTHON) .ci/test-logger

showcase: venv
	$(BIN)/python docs/showcase.py

demo: venv
	$(BIN)/snakemake all
	@echo
	@cat results/digits/fid_table.md
	@echo
	@echo "Pictures: results/digits/figures/*.png   Table: results/digits/fid_table.csv"
	@echo "Runs: $(BIN)/mlflow ui   then open the URL that it prints and press Model training"

bench: venv
	$(BIN)/python benchmarks/run.py

lint: venv style types documents

style: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow logger/examples
	$(BIN)/snakemake --lint
	$(BIN)/lint-imports
	$(BIN)/codespell

types: venv
	$(BIN)/mypy
	cd logger && $(abspath $(BIN))/mypy

documents: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

site: documents
	@echo "Open site/index.html, or for a search field: $(BIN)/mkdocs serve"
