# Everything sets itself up from a fresh clone: a virtual environment in .venv, made once.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test torture llama test-real bench bench-gpu mutants fuzz lint format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) torch==2.13.0
	$(PIP) -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) -e '.[test]'
	@touch $@

demo: $(VENV)/.installed  ## train the tiny model on the bundled sample, ask it what it has not seen
	rm -rf runs/demo
	$(BIN)/sftctl train --model tiny --learning-rate 0.003 --set optim.warmup_steps=20 --epochs 14 \
	  --output-dir runs/demo
	$(BIN)/sftctl chat runs/demo --prompt "What is 38 plus 39?"
	$(BIN)/sftctl chat runs/demo --prompt "What comes after 291?"
	$(BIN)/sftctl chat runs/demo --prompt "What are the plurals of baby and child?"
	$(BIN)/sftctl chat runs/demo --prompt "48加25等于多少？"

# loadfile: what a file of tests sets up for itself is made once.
test: $(VENV)/.tested  ## the test suite, in minutes
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not real and not torture" tests

torture: $(VENV)/.tested  ## crashes, kills, power cuts (as root) and flipped bits by the thousand
	$(BIN)/python -m pytest -m torture -rs tests/torture

$(VENV)/.llama: $(VENV)/.tested
	$(PIP) -e '.[llama]'
	@touch $@

llama: $(VENV)/.llama  ## build llama.cpp for the tests of .gguf files: half an hour on two cores

test-real: $(VENV)/.tested  ## real data, real weights, real kills: an hour
	SFTCTL_REAL=.real $(BIN)/python -m pytest -m real -rs tests/real tests/docs

$(VENV)/.benched: $(VENV)/.tested
	$(PIP) -e '.[bench]'
	@touch $@

bench: $(VENV)/.benched  ## the tables of docs/benchmarks.md; wants a quiet machine
	SFTCTL_REAL=.real $(BIN)/python -m tests.benchmarks

bench-gpu: $(VENV)/.benched  ## training on one GPU: minutes; has never run
	SFTCTL_REAL=.real $(BIN)/python -m tests.benchmarks.gpu

$(VENV)/.mutated: $(VENV)/.tested
	$(PIP) -e '.[mutants]'
	@touch $@

NUM ?= 100
SEED ?= 0
ROOM ?= all
JOBS ?= 1
mutants: $(VENV)/.mutated  ## change the code NUM times: does a test fail? (SEED, ROOM, JOBS; hours)
	$(BIN)/python -m tests.mutants --num $(NUM) --seed $(SEED) --room $(ROOM) --jobs $(JOBS)

SECONDS ?= 600
fuzz: $(VENV)/.tested  ## damage a file of each format for SECONDS: no traceback, hang or full memory
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

lint: $(VENV)/.tested  ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check sftctl tests
	$(BIN)/ruff format --check sftctl tests
	$(BIN)/mypy

format: $(VENV)/.tested  ## rewrite in the house style
	$(BIN)/ruff check --fix sftctl tests
	$(BIN)/ruff format sftctl tests

clean:  ## remove what make made
	rm -rf $(VENV) .real .pytest_cache .mypy_cache .ruff_cache .hypothesis
