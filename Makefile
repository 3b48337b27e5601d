# Works from any folder: make -C path/to/bmt-adapters demo
ROOT := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
PYTHON ?= python3
BIN := $(ROOT).venv/bin
PORT ?= 8000
export HF_HUB_DISABLE_TELEMETRY = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-quick lint format docs clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: ## make .venv with all that the other targets need
	@$(PYTHON) $(ROOT)scripts/setup.py

demo: setup ## train two masks, serve them, and see them answer; about ten minutes
	@$(BIN)/python $(ROOT)examples/demo/run.py $(DEMO)

serve: setup ## serve MODEL (default: the demo's model) with the embedded registry
	@cd $(ROOT) && exec $(BIN)/python examples/demo/serve.py --port $(PORT) $(MODEL)

test: setup ## all tests, on the real model, engine and registry
	@cd $(ROOT) && $(BIN)/python -m pytest $(PYTEST)

test-quick: setup ## without the tests that start an engine
	@cd $(ROOT) && $(BIN)/python -m pytest -m "not engine" $(PYTEST)

lint: setup ## ruff and mypy
	@cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check . \
		&& $(BIN)/mypy core/bmt_core trainer/bmt_trainer server/bmt_server client/bmt_client

format: setup ## let ruff lay out and mend what it can
	@cd $(ROOT) && $(BIN)/ruff check --fix -q . ; $(BIN)/ruff format .

docs: setup ## write docs/cli.md anew from the commands
	@cd $(ROOT) && $(BIN)/python scripts/gen_cli_docs.py

clean: ## remove .venv, .bmt and caches
	rm -rf $(ROOT).venv $(ROOT).bmt $(ROOT).pytest_cache $(ROOT).mypy_cache $(ROOT).ruff_cache
