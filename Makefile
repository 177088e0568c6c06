# Two commands matter: `make serve` and `make test`. Everything is installed into .venv.

PYTHON ?= python3
MODEL ?= smollm2-135m
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install dev serve chat test lint sanitize arm format bench clean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## install pellucid into .venv

dev: $(VENV)/.dev ## install what tests, linters and benchmarks need, too

serve: $(VENV)/.installed ## serve the default model (MODEL=... for another)
	@$(BIN)/pellucid serve $(MODEL) $(ARGS)

chat: $(VENV)/.installed ## talk to the default model in the terminal
	@$(BIN)/pellucid chat $(MODEL) $(ARGS)

test: $(VENV)/.dev ## run the tests, on the real default model where it can be had
	@$(BIN)/pellucid pull $(MODEL) || echo "no default model: tests that need it are skipped"
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: $(VENV)/.dev ## run the native kernels under the address and undefined-behaviour sanitizers
	$(BIN)/cmake -S csrc -B build/asan -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPELLUCID_SANITIZE=ON
	$(BIN)/cmake --build build/asan
	build/asan/kernel_check

arm: $(VENV)/.dev ## run the native kernels for 64-bit ARM under an emulator
	PATH="$(CURDIR)/$(BIN):$$PATH" csrc/tools/check_arm.sh

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## measure this machine; results go to benchmarks/results/
	$(BIN)/python -m benchmarks

clean: ## remove what was built and installed
	rm -rf $(VENV) build dist src/pellucid/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(0 if (3, 11) <= v <= (3, 13) else f"pellucid needs Python 3.11 to 3.13; $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt $(shell find csrc -type f) | $(VENV)/bin/python
	@echo "Installing pellucid into $(VENV) (once; PyTorch is the large part) ..."
	@$(PIP) -e ".[fast]"
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Installing what tests and linters need ..."
	@$(PIP) -e ".[dev]"
	@touch $@
