# `make demo` and `make test` create .venv on their first run.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := sb3,video,train,robots,serve,dev

.PHONY: demo test check format bench clean

demo: .venv/installed
	$(BIN)/robometer-gym demo

test: check
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed
	$(BIN)/python benchmarks/wrapper_overhead.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Downloads torch and its CUDA libraries, about 6 GB.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar on -e '.[$(EXTRAS)]'
	touch $@
