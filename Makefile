# Works from any folder: make -C path/to/bmt-adapters demo
# Asked of the shell, for make's own functions split paths at spaces.
ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)
PYTHON ?= python3
BIN := $(ROOT)/.venv/bin
PORT ?= 8000
SBOM ?= $(ROOT)/dist/sbom
# Processes of `make test`, `make test-slow` and `make test-quick`; 0 shows what tests print, with PYTEST=-s.
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadscope --no-loadscope-reorder
export HF_HUB_DISABLE_TELEMETRY = 1

export PAPER_DATA

STRICT := core/bmt_core client/bmt_client $(addprefix server/bmt_server/,api registry ipc sources worker console)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-slow test-quick test-operate test-vllm bench bench-serve bench-swap bench-cold bench-format reproduce tools lint format docs models lock sbom clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' "$(ROOT)/Makefile" | sed 's/:.*## /\t/' | expand -t 20

setup: ## make .venv with all that the other targets need
	@$(PYTHON) "$(ROOT)/tools/setup.py"

demo: setup ## train two masks, serve them, and see them answer; 10 to 15 minutes
	@"$(BIN)/python" "$(ROOT)/examples/demo/run.py" $(DEMO)

serve: setup ## serve MODEL (default: the demo's model) with the embedded registry
	@"$(BIN)/python" "$(ROOT)/examples/demo/serve.py" --port $(PORT) $(if $(MODEL),"$(MODEL)")

test: setup tools ## tests on the real model, engine and registry; 45 minutes on 2 cores
	@cd "$(ROOT)" && "$(BIN)/python" -m pytest $(PARALLEL) -m "not slow and not operate" $(PYTEST)

test-slow: setup tools ## the other tests: more engines, compiled and parallel ones; 15 minutes
	@cd "$(ROOT)" && "$(BIN)/python" -m pytest $(PARALLEL) -m "slow and not operate" $(PYTEST)

test-quick: setup tools ## without the tests that start an engine
	@cd "$(ROOT)" && "$(BIN)/python" -m pytest $(PARALLEL) -m "not engine and not slow and not operate" $(PYTEST)

test-operate: setup tools ## long scenarios: faults, rollouts, overload, fuzzing (BMT_OPERATE_SCALE=0.1: a tenth of each)
	@cd "$(ROOT)" && "$(BIN)/python" -m pip install -q -r tests/system/requirements.txt \
		&& "$(BIN)/python" -m pytest -m operate -s tests $(PYTEST)

test-vllm: setup ## the tests of the seams to vLLM on VERSION=0.33.0, and its answers against this one's
	@cd "$(ROOT)" && "$(BIN)/python" tools/vllm_suite.py $(VERSION) $(PYTEST)

bench: setup ## measure all, with baselines; hours on 2 cores (BENCH=--quick tries it, --resume goes on)
	@cd "$(ROOT)" && "$(BIN)/python" -m benchmarks all $(BENCH)

bench-serve: ## tokens a second against bare vLLM and its LoRA
bench-swap: ## changing masks in place, and what one takes of memory
bench-cold: ## first tokens of cold masks, and what they do to others
bench-format: ## the file's size and reading time
bench-serve bench-swap bench-cold bench-format: setup
	@cd "$(ROOT)" && "$(BIN)/python" -m benchmarks $(@:bench-%=%) $(BENCH)

# NAME of the command line alone: some shells export a variable of that name.
reproduce: setup ## list the paper's tables and our experiments; NAME=table3 runs, NEXT=1 goes on, DRY_RUN=1 tries
	@cd "$(ROOT)" && "$(BIN)/python" -m reproduce $(if $(findstring command,$(origin NAME)),"$(NAME)") $(if $(NEXT),--next) $(if $(DRY_RUN),--dry-run) $(if $(SEEDS),--seeds "$(SEEDS)")

paper-%:
	@echo "\`make $@\` is gone: \`make reproduce\` lists the names of what there was, as \`make reproduce NAME=sdft\`" >&2; exit 2

tools: setup ## fetch the programs that tests run: helm, kubectl, promtool, prometheus, hadolint
	@"$(BIN)/python" "$(ROOT)/tools/fetch_test_tools.py"

lint: setup ## ruff and mypy
	@cd "$(ROOT)" && "$(BIN)/python" -m ruff check . && "$(BIN)/python" -m ruff format --check . \
		&& "$(BIN)/python" -m mypy core/bmt_core trainer/bmt_trainer server/bmt_server client/bmt_client examples/demo tools benchmarks reproduce \
		&& "$(BIN)/python" -m mypy --strict $(STRICT)

format: setup ## let ruff lay out and mend what it can
	@cd "$(ROOT)" && "$(BIN)/python" -m ruff check --fix -q . ; "$(BIN)/python" -m ruff format .

docs: setup ## write the generated pages, and build the site into site/
	@cd "$(ROOT)" && "$(BIN)/python" tools/generate.py \
		&& NO_MKDOCS_2_WARNING=1 "$(BIN)/python" -m mkdocs build --strict --quiet \
		&& "$(BIN)/python" tools/site_text.py site

models: setup ## try every causal architecture of transformers with masks, and write the page of models; 10 minutes
	@cd "$(ROOT)" && "$(BIN)/python" -m tools.models $(MODELS) && "$(BIN)/python" tools/generate.py models

lock: setup ## pin newer dependencies: constraints/ and the images' requirements
	@cd "$(ROOT)" && "$(BIN)/python" -m pip install -q uv && "$(BIN)/python" tools/lock.py $(LOCK)

sbom: ## write bills of materials (CycloneDX) of the images' requirements to SBOM; needs tools/release-requirements.txt
	@cd "$(ROOT)" && mkdir -p "$(SBOM)" && for lock in server-cpu server-gpu trainer; do \
		"$(PYTHON)" -m cyclonedx_py requirements "deploy/docker/requirements/$$lock.txt" --pyproject pyproject.toml \
			--output-reproducible --of JSON -o "$(SBOM)/$$lock.cdx.json" || exit 1; done

clean: ## remove .venv, .bmt and caches
	@cd "$(ROOT)" && rm -rf .venv .bmt .pytest_cache .mypy_cache .ruff_cache .hypothesis
