# Every check of the project by name; `make help` lists them.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
# Two workers suit two cores; compiling is what takes the time.
WORKERS ?= 2
# Every annotated shape and type is checked as it runs; tests that search take a quarter longer.
SHAPES := --jaxtyping-packages=robustjax,beartype.beartype
# Fast tests of what no slow proof runs with these checks: the train step, options of the attacks.
UNREACHED := tests/training/test_step.py tests/attacks/test_options.py

.DEFAULT_GOAL := help
.PHONY: help demo test verify bench lint format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

demo: $(VENV)/.installed ## a miniature scaling study, from training to report.html
	$(BIN)/robustjax study --config=configs/smoke.py --workdir=runs/demo

test: $(VENV)/.dev ## the fast tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

verify: $(VENV)/.parity ## the slow proofs: torch parity, kill tests, several processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m slow $(SHAPES)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(SHAPES) $(UNREACHED)

bench: $(VENV)/.parity $(VENV)-nanogcg/.installed ## measured figures, one line of JSON each
	$(BIN)/python -m benchmarks.gcg_vs_nanogcg $(VENV)-nanogcg/bin/python
	$(BIN)/python -m benchmarks.gcg_scaling
	$(BIN)/python -m benchmarks.train_vs_torch
	$(BIN)/python -m benchmarks.plans
	$(BIN)/python -m benchmarks.strong_scaling
	$(BIN)/python -m benchmarks.study_hours
	$(BIN)/python -m benchmarks.results --write
	$(BIN)/python -m benchmarks.parity
	$(BIN)/python -m benchmarks.data_speed
	$(BIN)/python -m benchmarks.records_load
	$(BIN)/python -m benchmarks.flops_gap
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.load_time
	$(BIN)/python -m benchmarks.checkpoint_time
	$(BIN)/python -m benchmarks.convert_memory
	$(BIN)/python -m benchmarks.chat_model

lint: $(VENV)/.dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck -x launch/*.sh

format: $(VENV)/.dev ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and builds; runs/ and the environment stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find robustjax configs launch tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment grows in three steps, each with a stamp that pyproject.toml outdates.

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11: set PYTHON=/path/to/python3.11 or newer."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.parity: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,parity,tpu]'
	@touch $@

# What we are compared with needs other versions of the same libraries.
$(VENV)-nanogcg/.installed: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-nanogcg
	$(VENV)-nanogcg/bin/python -m pip install --quiet nanogcg==0.3.0 torch==2.13.0 'transformers<4.48'
	@touch $@
