# Start with `make demo` or `make test`; both set up .venv from constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# DVC runs its stages with the first `python` in PATH, which has to be that of .venv.
export PATH := $(BIN):$(PATH)

.PHONY: demo test lint docs bench format clean

demo: $(VENV)/.setup-done  ## render, train a teacher, cache it, train students from the store, report
	dvc repro
	@echo "Look at data/report.html; 'dvc metrics show' prints every figure."

# One torch thread per test process: on a busy machine, more threads made the tests 5 times slower. `loadfile` keeps the
# tests of a file in one process, so that its module fixtures are made once.
test: $(VENV)/.setup-done
	OMP_NUM_THREADS=1 python -m pytest -q --durations=10 -n logical --maxprocesses 8 --dist loadfile --max-worker-restart 0

lint: $(VENV)/.setup-done
	ruff check .
	ruff format --check .
	mypy

# Warnings (a broken link, anchor or name) are errors. Needs no network.
docs: $(VENV)/.setup-done  ## the documentation site, in site/
	python -m pipeline.cli.reference > docs/cli.md
	zensical build --clean --strict
	@echo "Read it with: python -m http.server -d site"

format: $(VENV)/.setup-done
	ruff check --fix .
	ruff format .

bench: $(VENV)/.setup-done  ## compare with peers; writes benchmarks/results/ and the tables in docs
	python benchmarks/store_read.py
	python benchmarks/loader.py
	python benchmarks/loss.py
	python benchmarks/stage_one.py
	python benchmarks/foreign_teacher.py
	python benchmarks/store_extras.py
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
	@# torch first and alone: with a version range, pip may install the CUDA build (gigabytes).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@
