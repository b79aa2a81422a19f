# `make train` and `make test` need Python >= 3.10 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := ddpg_ext examples benchmarks tests docs/conf.py
# Not ?=: ENV is a shell's variable, too, and may be anything
ENV = Pendulum-v1

.PHONY: help train test lint type format commit-checks doc benchmark clean

help:
	@echo "make train [ENV=Pendulum-v1]  train an agent; the result lands in runs/"
	@echo "make test                     run the whole test suite"
	@echo "make lint | type | format     ruff check | mypy | ruff format and import order"
	@echo "make commit-checks            format check, type check and lint, as CI runs them"
	@echo "make doc                      build the documentation, warnings as errors"
	@echo "make benchmark                throughput against SB3's and SBX's DDPG, buffers, pixels (more than 90 minutes)"
	@echo "make clean                    remove the virtual environment and what was built"

# Set-up: made once, and again only when what it installs changes. The stamp is touched last,
# so that an interrupted install starts over.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name it with: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pinned packages into $(VENV) (a few minutes, once)"
	@$(INSTALL) torch==2.13.0
	@$(INSTALL) -e ".[extra,box2d,mujoco,plots]"
	@touch $@

$(VENV)/.tests: $(VENV)/.installed
	@echo "Installing what the tests need besides"
	@$(INSTALL) -e ".[extra,box2d,mujoco,dmc,zoo,sweep,plots,onnx,wandb,notebook,tests]"
	@touch $@

$(VENV)/.docs: $(VENV)/.tests
	@$(INSTALL) -e ".[docs]"
	@touch $@

train: $(VENV)/.installed
	$(BIN)/python examples/train.py $(ENV)

test: $(VENV)/.tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.tests
	$(BIN)/ruff check $(SOURCES)

type: $(VENV)/.tests
	$(BIN)/mypy

format: $(VENV)/.tests
	$(BIN)/ruff check --select I --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

commit-checks: $(VENV)/.tests
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/ruff check $(SOURCES)

doc: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

benchmark: $(VENV)/.tests
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/buffers.py
	$(BIN)/python benchmarks/pixels.py

clean:
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
