# Everything a developer needs; each target sets up .venv itself. `make` lists the targets.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
# processes that share the tests, a file at a time; 0: none but pytest's own, for a debugger
WORKERS ?= 2
# `make bench` starts a server of its own here
BENCH_PORT ?= 8123

VENV := .venv
BIN := $(VENV)/bin
COMPILED := src/twinline/engine/ops/_cpu*.so src/twinline/lines/_events*.so src/twinline/gateway/_requests*.so \
	src/twinline/gateway/_text_event*.so \
	src/twinline/gateway/routing/_placement*.so
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One thread a process: the suite runs engines beside the tests, and small models gain nothing from more.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help setup serve test bench lint format clean

help:
	@echo 'make setup    make .venv and $(BIN)/twinline   (PYTHON=python3.12 chooses the Python)'
	@echo 'make serve    serve the embedded tiny-r1 on http://$(HOST):$(PORT)/v1   (HOST, PORT, ARGS)'
	@echo 'make test     run the test suite   (ARGS="-k words" chooses tests, WORKERS=0 is for a debugger)'
	@echo 'make bench    serve tiny-r1 and put load on it   (ARGS="--concurrency 8 ...")'
	@echo 'make lint     check style and types'
	@echo 'make format   rewrite the code in the house style'
	@echo 'make clean    remove .venv and everything built'

setup: $(VENV)/.setup

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "twinline needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Name another: PYTHON=python3.12 make setup" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.setup: $(VENV)/.python pyproject.toml setup.py scripts/install-torch $(wildcard csrc/* csrc/cpu/*)
	@$(BIN)/python scripts/install-torch
	@echo 'installing twinline'
	@rm -f $(COMPILED)  # or an old one would be taken for what could not be compiled
	@$(PIP) install --quiet --editable .
	@ls src/twinline/engine/ops/_cpu*.so >/dev/null 2>&1 || \
	  echo 'the CPU kernels could not be compiled: the engine works without, slower (c++ --version)'
	@# Without its dependencies: of transformers and triton it needs nothing here (engine/grammars/library.py).
	@$(PIP) install --quiet 'apache-tvm-ffi>=0.1.11,<0.2' 'pydantic>=2,<3' && \
	  $(PIP) install --quiet --no-deps 'xgrammar>=0.2.8,<0.3' || \
	  echo 'xgrammar cannot be installed here: native lines have no structured output'
	@touch $@

$(VENV)/.dev: $(VENV)/.setup
	@echo 'installing development tools'
	@# The tools alone: to install the package again would compile it again.
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/dev.txt
	@$(PIP) install --quiet --no-warn-conflicts --requirement $(VENV)/dev.txt
	@touch $@

serve: setup
	@$(BIN)/twinline serve --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.dev
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

bench: setup
	@$(BIN)/twinline serve --port $(BENCH_PORT) --log-level warning & server=$$!; \
	trap 'kill $$server 2>/dev/null; wait $$server' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/twinline bench serve --url http://127.0.0.1:$(BENCH_PORT)/v1 --model tiny-r1 --wait 60 --warmup 2 \
	  --requests 64 --concurrency 4 --prompt-tokens 64 --output-tokens 64 $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check --no-cache .  # a cached verdict does not see what new folders change
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +
	rm -rf src/*.egg-info src/twinline/engine/ops/_cpu*.so
