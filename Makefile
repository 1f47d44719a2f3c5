# Two commands for a stranger: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Bytecode is written when a module is first imported, not for all of torch when it is installed: half the time.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test check format results

help:  ## say what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

# Installed again only when what is to be installed has changed. uv looks up in a second what takes pip a minute;
# torch is left to pip, which by a machine's own settings may find a smaller build. Where uv finds no index, pip does all.
INSTALL := pip install --quiet --constraint constraints.txt
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m $(INSTALL) --no-compile --disable-pip-version-check torch uv
	$(BIN)/uv $(INSTALL) --system-certs --python $(BIN)/python --editable '.[dev]' \
	|| $(BIN)/python -m $(INSTALL) --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(READY)  ## train on real digits: RLLC-AdamW and RLLC beside SGD, momentum and Adam (under 2 minutes)
	$(BIN)/rllc compare digits-mlp

test: $(READY)  ## run the whole test suite
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 12

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(READY)  ## README's and docs/results.md's tables and pictures, from the committed records
	$(BIN)/python benchmarks/results.py

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
