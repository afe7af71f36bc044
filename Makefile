# Two commands do all the set-up: `make demo` and `make test`. Each makes its own .venv from constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# dvc runs its stages with `python`; that has to be ours. Bytecode beside the sources keeps the stages' start short.
export PATH := $(BIN):$(PATH)

.PHONY: demo test lint docs bench format clean

demo: $(VENV)/.setup-done  ## render, train a teacher, cache it, train students from the store, report
	dvc repro
	@echo "Look at data/report.html; 'dvc metrics show' prints every figure."

# One thread of torch in each test process: on a machine that others use too, threads that wait for each other made the
# tests 5 times slower. Fixtures of a file are made once, so a file's tests stay together.
test: $(VENV)/.setup-done
	OMP_NUM_THREADS=1 python -m pytest -q --durations=10 -n logical --maxprocesses 8 --dist loadfile --max-worker-restart 0

lint: $(VENV)/.setup-done
	ruff check .
	ruff format --check .
	mypy

# Warnings (a broken link, an anchor or a name that does not exist) are errors. Nothing is fetched.
docs: $(VENV)/.setup-done  ## the documentation site, in site/
	python -m pipeline.cli.reference > docs/cli.md
	zensical build --clean --strict
	@echo "Read it with: python -m http.server -d site"

format: $(VENV)/.setup-done
	ruff check --fix .
	ruff format .

bench: $(VENV)/.setup-done  ## side by side with peers; prints tables and writes benchmarks/results/
	python benchmarks/store_read.py
	python benchmarks/loader.py
	python benchmarks/loss.py
	python benchmarks/stage_one.py
	python benchmarks/stage_two.py
	python benchmarks/online.py
	python benchmarks/scale.py
	python benchmarks/students.py
	python experiments/tables.py

clean:
	rm -rf $(VENV) build dist site docs/cli.md *.egg-info

$(VENV)/.setup-done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	@# torch by itself first: with a range, pip may bring the CUDA build and its gigabytes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@
