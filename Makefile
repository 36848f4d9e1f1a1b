# The two commands of the README, `make demo` and `make test`, and the gate, `make check`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO_FLAGS ?=

.PHONY: demo test test-all check format benchmark clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cfa-index needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[demo,lite,timm,test,check]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/cfa-index demo $(DEMO_FLAGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m ''

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/.installed
	$(BIN)/python -m benchmarks.stages

clean:
	rm -rf $(VENV) demo-output
