PYTHON ?= python3
BIN := .venv/bin

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: .venv/.installed  ## make .venv with everything

quickstart: setup  ## train, compress, export and verify on real digits
	$(BIN)/atmc-tool quickstart

test: setup  ## run the tests, but for the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-slow: setup  ## run the slow tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

lint: setup  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup  ## check types
	$(BIN)/mypy

bench: setup  ## measure what README and docs state (about four hours)
	$(BIN)/python benchmarks/pipeline.py digits --seeds 0 1 2
	$(BIN)/python benchmarks/pipeline.py mnist --seeds 0
	$(BIN)/python benchmarks/attacks.py digits build/benchmarks/digits-0/model.pt --eps 0.1 --eps-l2 0.5 --queries 1000
	$(BIN)/python benchmarks/attacks.py mnist build/benchmarks/mnist-0/model.pt --eps 0.3 --eps-l2 2 --strong 200
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/int8.py
	$(BIN)/python benchmarks/kills.py --kills 50
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/codebooks.py
	$(BIN)/python benchmarks/own_work.py
	for grid in mnist structures-mnist structures-cifar10; do \
		$(BIN)/atmc-tool compare benchmarks/grids/$$grid.yaml -o build/benchmarks/$$grid; done
	$(BIN)/python benchmarks/structures.py mnist=build/benchmarks/structures-mnist \
		cifar10=build/benchmarks/structures-cifar10
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/channels.py
	$(BIN)/python benchmarks/low_rank.py
	$(BIN)/python benchmarks/graph.py --rounds 3 --densities 0.05 0.2 0.01
	$(BIN)/python benchmarks/files.py
	$(BIN)/python benchmarks/pgd.py --rounds 3
	$(BIN)/python benchmarks/elsewhere.py
	$(BIN)/python benchmarks/mutations.py
	$(BIN)/python benchmarks/selftest.py --honest 20 --planted 3
	$(BIN)/python benchmarks/selftest.py --data cifar10-jpeg --honest 1 --planted 1
	$(BIN)/python benchmarks/precision.py digits --seeds 0 1 2 3 4
	$(BIN)/python benchmarks/precision.py mnist --seeds 0 1

check: lint type test  ## all that has to hold before a change lands

.PHONY: help setup quickstart test test-slow lint type bench check
