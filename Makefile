# make demo    everything from nothing: environment, synthetic images, source task, transfer, results
# make test    everything from nothing: environment, then the tests
# make check   formatting, lint, types, import rules
# make fuzz    10,000 damaged image files: a picture or a typed error for each, within a second
# make bench   speed against plain Lightning, fastai and timm, and of every part: about 10 minutes; FULL=1: all, hours
# make format  rewrite the code as `make check` wants it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test check fuzz bench format
.DEFAULT_GOAL := install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version); name another: make PYTHON=python3.12"; exit 1; }
	@echo "installing medxfer and what it needs into $(VENV) (several GB the first time, a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m medxfer.demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fuzz: install
	$(BIN)/python benchmarks/fuzz.py --files 10000

# e.g. make bench FULL=1 BENCH='--data labels.csv --weights weights.safetensors'
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/bench.py $(if $(FULL),--full) $(BENCH)

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
